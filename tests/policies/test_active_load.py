from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sgl_router.policies import ActiveLoad
from sgl_router.workers import Worker, WorkerInfo


def load_of(target: object) -> tuple[int, int, int]:
    return target.inflight, target.prefill_tokens, target.decode_blocks  # type: ignore[attr-defined]


def test_the_first_byte_releases_prefill_and_the_end_the_rest(fleet) -> None:
    (target,) = fleet(0)
    load = ActiveLoad()
    with load.acquire(target, prefill_tokens=100, decode_blocks=7, now=0.0) as guard:
        assert load_of(target) == (1, 100, 7)
        assert len(load) == 1
        guard.first_byte()
        guard.first_byte()
        assert load_of(target) == (1, 0, 7)
    assert load_of(target) == (0, 0, 0)
    assert len(load) == 0
    guard.release()
    assert load_of(target) == (0, 0, 0)
    assert target.processed == 1


def test_an_exception_releases(fleet) -> None:
    (target,) = fleet(0)
    load = ActiveLoad()
    try:
        with load.acquire(target, prefill_tokens=1, decode_blocks=1, now=0.0):
            raise RuntimeError
    except RuntimeError:
        pass
    assert load_of(target) == (0, 0, 0)


def test_only_the_old_expire_and_only_once(fleet) -> None:
    (target,) = fleet(0)
    load = ActiveLoad()
    ended: list[str] = []
    old = load.acquire(target, prefill_tokens=0, decode_blocks=0, now=0.0)
    old.on_expire = lambda: ended.append("old")
    young = load.acquire(target, prefill_tokens=0, decode_blocks=0, now=8.0)
    young.on_expire = lambda: ended.append("young")
    assert load.expire(now=10.0, max_age=10.0) == 0
    assert load.expire(now=10.1, max_age=10.0) == 1
    assert load.expire(now=10.2, max_age=10.0) == 0
    assert (ended, old.expired, young.expired) == (["old"], True, False)
    assert target.inflight == 2  # expiry ends the request; ending releases
    old.release()
    assert load.expire(now=30.0, max_age=10.0) == 1
    assert ended == ["old", "young"]


def test_a_guard_may_release_itself_while_expiring(fleet) -> None:
    (target,) = fleet(0)
    load = ActiveLoad()
    for _ in range(3):
        guard = load.acquire(target, prefill_tokens=0, decode_blocks=0, now=0.0)
        guard.on_expire = guard.release
    assert load.expire(now=99.0, max_age=1.0) == 3
    assert load_of(target) == (0, 0, 0)


def test_a_new_worker_starts_level_with_its_peers() -> None:
    load = ActiveLoad()
    veterans = [Worker(f"http://w{n}:1", WorkerInfo(served_model_name="m")) for n in range(2)]
    stranger = Worker("http://s:1", WorkerInfo(served_model_name="other"))
    for worker in (*veterans, stranger):
        load.worker_added(worker)
    veterans[0].targets[0].processed = 900
    veterans[1].targets[0].processed = 700
    newcomer = Worker("http://w9:1", WorkerInfo(served_model_name="m", dp_size=2))
    load.worker_added(newcomer)
    assert [target.processed for target in newcomer.targets] == [700, 700]
    load.worker_removed(veterans[1])
    another = Worker("http://w8:1", WorkerInfo(served_model_name="m"))
    load.worker_removed(newcomer)
    load.worker_added(another)
    assert another.targets[0].processed == 900


@given(st.lists(st.sampled_from(["acquire", "first_byte", "release", "expire"]), max_size=40), st.randoms())
def test_load_returns_to_zero(ops: list[str], random: object) -> None:
    targets = Worker("http://w:1", WorkerInfo(served_model_name="m", dp_size=3)).targets
    load = ActiveLoad()
    guards = []
    for now, op in enumerate(ops):
        if op == "acquire" or not guards:
            target = random.choice(targets)  # type: ignore[attr-defined]
            guard = load.acquire(target, prefill_tokens=now, decode_blocks=2, now=float(now))
            guard.on_expire = guard.release
            guards.append(guard)
        elif op == "expire":
            load.expire(float(now), 5.0)
        else:
            getattr(random.choice(guards), op)()  # type: ignore[attr-defined]
    for guard in guards:
        guard.release()
    assert [load_of(target) for target in targets] == [(0, 0, 0)] * 3
    assert len(load) == 0
