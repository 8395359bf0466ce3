"""A worker with two data-parallel ranks is two caches behind one URL: the router chooses the rank, not the engine."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import RANKED_KEY
from kit.engine import MODEL, Engine
from kit.provision import Environment
from kit.worker import WorkerClient
from lane.fleet import Fleet
from lane.router import Router

pytestmark = pytest.mark.own_workers("starts a worker of its own, with two ranks and an API key")


@pytest.fixture(scope="module")
def _ranked(ranked_engine: Engine, environment: Environment, log_dir: Path) -> Iterator[Fleet]:
    folder = log_dir / "dp"
    folder.mkdir()
    tokenizer = str(environment.model)
    router = Router(folder, model=MODEL, tokenizer=tokenizer, urls=[ranked_engine.url], api_key=RANKED_KEY)
    try:
        router.start()
        made = Fleet(router, [ranked_engine], ranked_engine.page_size)
        try:
            yield made
        finally:
            made.close()
    finally:
        router.close()


@pytest.fixture
def ranked(_ranked: Fleet) -> Fleet:
    _ranked.reset()
    return _ranked


def test_request_goes_to_the_rank_that_holds_the_prefix(ranked: Fleet) -> None:
    """Warmed on a rank past the router, asked for through it. The engine alone would take turns between its ranks."""
    (worker,) = ranked.workers
    for rank in (1, 0, 1):
        ranked.settle()  # generated tokens of the last answer may still be on their way
        messages = ranked.prompts.user(("rank", rank, ranked.held(worker)), 12 * ranked.page)
        before = ranked.view(worker).blocks()
        ranked.warm(worker, messages, rank=rank)
        after = ranked.view(worker).blocks()
        assert after[rank] > before[rank] and after[1 - rank] == before[1 - rank]
        routed = ranked.ask(messages)
        assert routed.decision.hit and routed.exact, str(routed)
        assert routed.cached == (routed.prompt - 1) // ranked.page * ranked.page, str(routed)
        assert routed.decision.rank in (None, rank), str(routed)


def test_repeated_prefix_sticks_to_one_rank(ranked: Fleet, numbers: list[str]) -> None:
    (worker,) = ranked.workers
    messages = ranked.prompts.user("repeated", 12 * ranked.page)
    routed = []
    for _ in range(6):
        routed.append(ranked.ask(messages))
        ranked.settle()
    seen = "\n".join(map(str, routed))
    assert all(r.exact for r in routed), seen
    assert all(r.cached >= 12 * ranked.page // 2 for r in routed[1:]), seen
    assert sorted(map(bool, ranked.view(worker).blocks())) == [False, True], "the prefix must live on one rank"
    numbers.append(f"two ranks: {sum(r.exact for r in routed)} of {len(routed)} predictions equal, one rank used")


def test_new_prefixes_spread_over_the_ranks(ranked: Fleet) -> None:
    """Four at a time: the rank with fewer requests in flight gets the next one."""
    (worker,) = ranked.workers
    prompts = [ranked.prompts.user(("spread", number), 6 * ranked.page) for number in range(8)]
    with ThreadPoolExecutor(4) as clients:
        assert len(list(clients.map(lambda prompt: ranked.ask(prompt, max_tokens=60), prompts))) == 8
    ranked.settle()
    assert all(ranked.view(worker).blocks())


def test_api_key_is_used_and_never_shown(ranked: Fleet) -> None:
    """The worker refuses whoever has no key; the router's clients need none, and find it nowhere."""
    (worker,) = ranked.workers
    keyless = WorkerClient(worker.url)
    assert keyless.call("/v1/models").status == 401
    assert ranked.ask([{"role": "user", "content": "hi"}]).worker is worker
    for path in ("/workers", "/metrics", "/v1/models", "/readyz"):
        reply = ranked.router.call(path)
        assert reply.status == 200, f"{path}: {reply}"
        assert RANKED_KEY.encode() not in reply.body, path
    assert RANKED_KEY not in ranked.router.log_path.read_text()
