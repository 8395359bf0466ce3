from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_router.load import ActiveLoad
from sgl_router.load.reports import LoadReport
from sgl_router.policies import least_loaded
from sgl_router.workers import Target, Worker, WorkerInfo


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


class Clock:
    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def test_only_models_that_are_asked_for_have_forecasts() -> None:
    load = ActiveLoad({"m": 5_000.0}, clock=Clock(7.0), stale_secs=3.0)
    mine, other = (Worker(f"http://{name}:1", WorkerInfo(served_model_name=name, dp_size=2)) for name in "mo")
    for worker in (mine, other):
        load.worker_added(worker)
    assert [target.forecast for target in other.targets] == [None, None]
    one, two = (target.forecast for target in mine.targets)
    assert one is not None
    assert two is not None
    assert one is not two
    assert one.prompts.speed.tokens_per_sec == 5_000.0
    one.reported(LoadReport(running=1, waiting=0, used_tokens=8), 7.0)
    assert (one.others_tokens(10.0), one.others_tokens(10.1)) == (8, 0)


def test_a_forecast_follows_a_request_from_dispatch_to_its_end() -> None:
    clock = Clock()
    load = ActiveLoad({"m": 1_000.0}, clock=clock)
    worker = Worker("http://w:1", WorkerInfo(served_model_name="m"))
    load.worker_added(worker)
    (target,) = worker.targets
    forecast = target.forecast
    assert forecast is not None
    guard = load.acquire(target, prefill_tokens=1_000, decode_blocks=1, now=0.0)
    assert forecast.prompts.tokens(0.0) == 1_000
    clock.now = 0.5
    guard.first_byte()
    guard.first_byte()
    assert forecast.prompts.tokens(0.5) == 0.0
    assert (len(forecast.prompts), forecast.answers.count) == (0, 1)
    clock.now = 2.5
    assert forecast.answers.tokens(2.5) == pytest.approx(60)
    guard.release(output_tokens=200)
    guard.release(output_tokens=9_999)
    assert (forecast.answers.count, forecast.answers.tokens(2.5)) == (0, 0.0)
    assert forecast.answers.tokens_per_sec == pytest.approx(30 + 0.05 * (100 - 30))


def test_a_request_that_ends_before_its_first_byte_leaves_no_backlog() -> None:
    load = ActiveLoad({"m": 1_000.0}, clock=Clock())
    worker = Worker("http://w:1", WorkerInfo(served_model_name="m"))
    load.worker_added(worker)
    forecast = worker.targets[0].forecast
    assert forecast is not None
    load.acquire(worker.targets[0], prefill_tokens=1_000, decode_blocks=1, now=0.0).release()
    assert (len(forecast.prompts), forecast.prompts.tokens(0.0), forecast.answers.count) == (0, 0.0, 0)


def test_a_whole_answers_prompt_does_not_wait_for_its_first_byte() -> None:
    load = ActiveLoad({"m": 1_000.0}, clock=Clock())
    worker = Worker("http://w:1", WorkerInfo(served_model_name="m"))
    load.worker_added(worker)
    forecast = worker.targets[0].forecast
    assert forecast is not None
    load.acquire(worker.targets[0], prefill_tokens=1_000, decode_blocks=1, now=0.0, streamed=False)
    load.acquire(worker.targets[0], prefill_tokens=1_000, decode_blocks=1, now=0.0)
    assert forecast.prompts.tokens(1.5) == pytest.approx(500)


def test_a_newcomer_is_thought_to_be_as_fast_as_its_peers_and_new_where_they_have_worked() -> None:
    clock = Clock(50.0)
    load = ActiveLoad({"m": 1_000.0}, clock=clock)
    peers = [Worker(f"http://w{number}:1", WorkerInfo(served_model_name="m")) for number in range(4)]
    for worker in peers:
        load.worker_added(worker)
        assert worker.targets[0].forecast is not None
        assert worker.targets[0].forecast.behind_secs == 0.0
    for worker, speed in zip(peers, (2_000, 6_000, 9_000), strict=False):
        worker.targets[0].forecast.prompts.speed.tell(speed, 1.0, 0.0)  # type: ignore[union-attr]
    clock.now = 60.0
    load.acquire(peers[0].targets[0], prefill_tokens=1, decode_blocks=1, now=60.0)
    clock.now = 60.5
    for name, behind in (("early", 0.5), ("late", 100.5)):
        newcomer = Worker(f"http://{name}:1", WorkerInfo(served_model_name="m"))
        load.worker_added(newcomer)
        forecast = newcomer.targets[0].forecast
        assert forecast is not None
        assert (forecast.prompts.speed.tokens_per_sec, forecast.born) == (6_000, clock.now)
        assert forecast.behind_secs == behind
        clock.now += 100.0
    other = Worker("http://other:1", WorkerInfo(served_model_name="n"))
    load.worker_added(other)
    for worker in [*load._workers]:
        load.worker_removed(worker)
    again = Worker("http://again:1", WorkerInfo(served_model_name="m"))
    load.worker_added(again)
    assert again.targets[0].forecast is not None
    assert again.targets[0].forecast.behind_secs == 0.0


def test_who_could_not_be_chosen_need_not_make_up_for_all_of_it() -> None:
    load = ActiveLoad()
    busy, away = (Worker(f"http://{name}:1", WorkerInfo(served_model_name="m")).targets[0] for name in "ba")
    for target in (busy, away):
        load.worker_added(target.worker)
    for _ in range(1_000):
        load.acquire(busy, prefill_tokens=0, decode_blocks=0, now=0.0).release()
    sent = Counter[Target]()
    for _ in range(200):
        target = least_loaded([busy, away], random.Random(1))
        sent[target] += 1
        load.acquire(target, prefill_tokens=0, decode_blocks=0, now=0.0).release()
    assert 100 <= sent[away] <= 110
    assert (busy.dispatched, away.dispatched) == (1_000 + sent[busy], sent[away])


@given(
    st.lists(
        st.tuples(st.sampled_from(["acquire", "acquire", "first_byte", "release", "expire"]), st.floats(0, 5)),
        max_size=60,
    ),
    st.randoms(),
)
def test_forecasts_return_to_nothing_too(ops: list[tuple[str, float]], random: object) -> None:
    """Targets with a forecast, some of which got it, or a new incarnation, while requests were out."""
    clock = Clock()
    load = ActiveLoad({"m": 1_000.0}, clock=clock)
    worker, late = (Worker(f"http://{name}:1", WorkerInfo(served_model_name="m", dp_size=2)) for name in "wl")
    load.worker_added(worker)
    targets = [*worker.targets, *late.targets]
    guards = []
    for step, (op, passed) in enumerate(ops):
        clock.now += passed
        if step == 10:
            load.worker_added(late)
        if op == "acquire" or not guards:
            guard = load.acquire(
                random.choice(targets),  # type: ignore[attr-defined]
                prefill_tokens=int(1_000 * passed),
                decode_blocks=2,
                now=clock.now,
                streamed=step % 3 > 0,
            )
            guard.on_expire = guard.release
            guards.append(guard)
        elif op == "expire":
            load.expire(clock.now, 10.0)
        else:
            getattr(random.choice(guards), op)()  # type: ignore[attr-defined]
        for target in targets:
            if target.forecast is not None:
                assert target.forecast.prompts.tokens(clock.now) >= -1e-6
                assert target.forecast.answers.count >= 0
    load.worker_removed(worker)
    for guard in guards:
        guard.release()
    assert len(load) == 0
    for target in targets:
        assert load_of(target) == (0, 0, 0)
        if target.forecast is not None:
            assert (len(target.forecast.prompts), target.forecast.answers.count) == (0, 0)
            assert target.forecast.prompts.tokens(clock.now) == 0.0
            assert target.forecast.answers.tokens(clock.now + 9) == 0.0


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


def test_a_refusal_teaches_no_speed() -> None:
    """A worker that turns requests away in no time must not look like the fastest of all."""
    now = 0.0
    load = ActiveLoad({"m": 1_000.0}, clock=lambda: now)
    worker = Worker("http://a:1", WorkerInfo(served_model_name="m"))
    load.worker_added(worker)
    (target,) = worker.targets
    assert target.forecast is not None
    for _ in range(12):
        guard = load.acquire(target, prefill_tokens=4_000, decode_blocks=1, now=now)
        now += 0.002
        guard.first_byte(computed=False)
        assert load_of(target) == (1, 0, 1)
        assert target.forecast.prompts.tokens(now) == target.forecast.answers.tokens(now) == 0
        guard.release(5)
        assert load_of(target) == (0, 0, 0)
    assert target.forecast.prompts.speed.observations == 0
    assert target.forecast.prompts.speed.tokens_per_sec == 1_000.0
    assert target.forecast.answers.count == 0


def test_what_was_adopted_is_charged_and_teaches_nothing() -> None:
    now = 100.0
    load = ActiveLoad({"m": 1_000.0}, clock=lambda: now)
    worker = Worker("http://a:1", WorkerInfo(served_model_name="m"))
    load.worker_added(worker)
    (target,) = worker.targets
    forecast = target.forecast
    assert forecast is not None
    begun, *waiting = [
        load.adopt(target, prefill_tokens=tokens, decode_blocks=5, now=now, streamed=True, computed=not tokens)
        for tokens in (0, *[8_000] * 8)
    ]
    assert load_of(target) == (9, 64_000, 45)
    assert (len(forecast.prompts), forecast.answers.count) == (8, 1), "one of them has been computed"
    for guard in waiting:  # all at once: the router has been away
        now += 1e-6
        guard.first_byte()
    assert (len(forecast.prompts), forecast.answers.count) == (0, 9)
    assert (forecast.prompts.speed.observations, forecast.prompts.speed.tokens_per_sec) == (0, 1_000.0)
    usual = forecast.answers.tokens_per_sec
    now += 1.0
    for guard in (begun, *waiting):
        guard.release(output_tokens=9_000)
    assert forecast.answers.tokens_per_sec == usual
    assert (load_of(target), forecast.answers.count) == ((0, 0, 0), 0)


def test_what_was_adopted_and_does_not_tell_is_computed_by_the_clock() -> None:
    now = 0.0
    load = ActiveLoad({"m": 1_000.0}, clock=lambda: now)
    worker = Worker("http://a:1", WorkerInfo(served_model_name="m"))
    load.worker_added(worker)
    (target,) = worker.targets
    assert target.forecast is not None
    load.adopt(target, prefill_tokens=1_000, decode_blocks=5, now=now, streamed=False, computed=False)
    assert target.forecast.prompts.tokens(0.5) == 500
    assert target.forecast.prompts.tokens(1.5) == len(target.forecast.prompts) == 0
