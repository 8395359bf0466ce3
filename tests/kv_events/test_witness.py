"""An index that hears what became of its predictions: claims given up, and what is told of a rank."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import numpy as np
import pytest
import structlog

from sgl_router.kv_events import DEFAULT_NAMESPACE, KvIndex, Namespace, PromptMatch, StreamState
from sgl_router.kv_events.follow.refill import Refill
from sgl_router.kv_events.follow.replay import ReplayEnd
from sgl_router.kv_events.follow.wire import Frame, decode_batch
from sgl_router.kv_events.index import witness
from sgl_router.kv_events.index.agreement import Verdict
from sgl_router.placement import DecisionReason, Leg
from sgl_router.prompt import Prompt
from sgl_router.workers import KvEventSource, Worker, WorkerInfo

PAGE = 4
SALTED = Namespace(cache_salt="tenant")


class Engine:
    """One worker's rank: `store` is what it publishes, `ask` one request that was routed to it."""

    def __init__(self, index: KvIndex, number: int = 0, **info: Any) -> None:
        self.index = index
        source = KvEventSource(host="127.0.0.1", port_base=1 + number, topic="kv")
        info = {"served_model_name": "m", "block_size": PAGE, "kv_source": source, **info}
        self.worker = Worker(f"http://w{number}:1", WorkerInfo(**info))
        index.worker_added(self.worker)
        (self.target,) = self.worker.targets
        self.stream = self.status.stream
        self.published: list[bytes] = []

    @property
    def status(self) -> Any:
        return self.index.status(self.worker)[0]

    def store(self, tokens: np.ndarray[Any, Any], salt: str | None = None, medium: str = "GPU") -> None:
        blocks = len(tokens) // PAGE
        kept = tokens[: blocks * PAGE].tolist()
        hashes = [hash((salt, *kept[: (i + 1) * PAGE])) for i in range(blocks)]
        event = {"type": "BlockStored", "block_hashes": hashes, "parent_block_hash": None, "token_ids": kept,
                 "block_size": PAGE, "medium": medium, **({"cache_salt": salt} if salt else {})}  # fmt: skip
        self.publish([event])

    def publish(self, events: list[Any]) -> None:
        payload = msgspec.msgpack.encode([1.0, events, 0])
        self.stream.observe(Frame(len(self.published), payload))
        self.published.append(payload)
        for one in decode_batch(payload).events:
            self.stream.apply(one)

    async def claimed(self, tokens: np.ndarray[Any, Any], namespace: Namespace = DEFAULT_NAMESPACE) -> int:
        prefix = (await self.index.match("m", tokens, namespace)).of(self.target)
        return prefix.blocks if prefix is not None else 0

    async def ask(
        self,
        tokens: np.ndarray[Any, Any],
        cached: int | None,
        namespace: Namespace = DEFAULT_NAMESPACE,
        expected: int = 0,
    ) -> int:
        """`cached` blocks are reported of it. Returns how many were claimed."""
        self.index._clock.now += 2.0
        prompt = Prompt(tokens)
        match = await self.index.match("m", prompt, namespace)
        prefix = match.of(self.target)
        blocks = prefix.blocks if prefix is not None else 0
        decision = Leg(
            self.target,
            DecisionReason.CACHE_HIT,
            1,
            0,
            0,
            blocks,
            match.blocks_of(self.target),
            PAGE,
            len(tokens),
            None,
            match.epoch_of(self.target),
            max(blocks, expected),
        )
        expectation = self.index.expect(self.target, match)
        sent = self.index.sent(decision, match)
        if expectation is not None:
            expectation.end()
        if sent is not None:
            sent.completed(None if cached is None else cached * PAGE)
        return blocks


class Clock:
    """Stands where it is put."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def tokens(number: int, blocks: int = 12) -> np.ndarray[Any, Any]:
    """A prompt of `blocks` whole blocks and a token, unlike those of other numbers from its first block on."""
    return np.random.default_rng(number).integers(0, 1 << 20, blocks * PAGE + 1, dtype=np.uint32)


@pytest.fixture
async def index(clock: Clock):
    index = KvIndex(clock=clock)
    yield index
    index.close()


def told(logs: list[Any], event: str) -> list[Any]:
    return [line for line in logs if line["event"].startswith(event)]


async def test_a_prefix_that_never_comes_true_loses_its_claims_and_no_other_does(index) -> None:
    engine = Engine(index)
    hot, other = tokens(1), tokens(2)
    both = np.concatenate([hot[: 5 * PAGE], tokens(3)])
    for prompt in (hot, other, both):
        engine.store(prompt)
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            assert await engine.ask(hot, 5) == 12
    assert await engine.claimed(hot) == 5, "what the worker did have is claimed still"
    assert await engine.claimed(both) == 17
    assert await engine.claimed(other) == 12
    assert engine.stream.state is StreamState.LIVE
    assert engine.status.agreement.given_up[Verdict.PREFIX] == 1
    assert len(told(logs, "kv claims of one prefix")) == 1
    engine.store(hot)  # the engine says that it has it again
    assert await engine.claimed(hot) == 12


async def test_a_long_prefix_in_doubt_costs_a_bounded_number_of_keys(index, monkeypatch) -> None:
    monkeypatch.setattr(witness, "_MOST_KEYS", 16)
    engine = Engine(index)
    prompt = tokens(1, blocks=500)
    engine.store(prompt)
    for _ in range(3):
        assert await engine.ask(prompt, 100) == 500
    assert 100 <= await engine.claimed(prompt) < 100 + 32


async def test_a_namespace_that_never_comes_true_is_not_matched_for_a_time(index, clock) -> None:
    engine, second = Engine(index), Engine(index, 1)
    salted = [tokens(number) for number in range(100, 120)]
    for prompt in salted:
        engine.store(prompt, "tenant")
        second.store(prompt, "tenant")
    for number in range(4):
        engine.store(tokens(number))
        await engine.ask(tokens(number), 12)
    with structlog.testing.capture_logs() as logs:
        for prompt in salted:
            if not await engine.ask(prompt, 0, SALTED):
                break
    assert await engine.claimed(salted[0], SALTED) == 0
    assert await second.claimed(salted[0], SALTED) == 12, "of this rank only"
    assert await engine.claimed(tokens(0)) == 12, "and of no other namespace"
    assert engine.stream.state is StreamState.LIVE
    assert index.totals.resyncs == 0
    assert engine.status.witness.withheld == 1
    assert [line["log_level"] for line in told(logs, "kv claims of one cache namespace")] == ["warning"]
    assert "tenant" not in str(logs), "a salt is its owner's"

    clock.now += 61.0
    assert await engine.claimed(salted[0], SALTED) == 12, "tried again"
    with structlog.testing.capture_logs() as logs:
        for prompt in salted:
            await engine.ask(prompt, 0, SALTED)
    assert not [line for line in told(logs, "kv claims") if line["log_level"] != "debug"], "told once"
    clock.now += 61.0
    assert await engine.claimed(salted[0], SALTED) == 0, "for twice as long"
    clock.now += 61.0
    assert await engine.claimed(salted[0], SALTED) == 12
    index.worker_removed(engine.worker)
    assert not index._withheld


async def test_a_lost_cache_still_costs_the_rank_its_trust(index) -> None:
    engine = Engine(index)
    for number in range(40):
        engine.store(tokens(number))
    for number in range(40):
        if not await engine.ask(tokens(number), 0):
            break
    assert number < 14
    assert engine.status.agreement.given_up[Verdict.RANK] == 1


async def test_an_answer_of_another_time_is_not_held_against_the_rank(index) -> None:
    engine = Engine(index)
    engine.store(tokens(1))
    prompt = Prompt(tokens(1))
    match = await index.match("m", prompt)
    decision = Leg(engine.target, DecisionReason.CACHE_HIT, 1, 0, 0, 12, 12, PAGE, 49, None,
                             match.epoch_of(engine.target), 12)  # fmt: skip
    sent = index.sent(decision, match)
    engine.stream.resync()
    engine.published.clear()
    engine.store(tokens(2))
    sent.completed(0)
    assert sum(engine.status.agreement.counts.values()) == 0
    index.worker_removed(engine.worker)
    sent.completed(0)


# --- what the index misses ----------------------------------------------------------------------------------------


async def test_what_the_worker_had_and_the_index_never_learns_is_told(index) -> None:
    engine = Engine(index)
    engine.store(tokens(0))
    with structlog.testing.capture_logs() as logs:
        for number in range(1, 40):
            await engine.ask(tokens(number), 12)
    (line,) = told(logs, "kv index misses blocks that the worker has cached")
    assert (line["log_level"], line["refilling"], line["some_namespaces_only"]) == ("warning", False, False)
    assert engine.status.witness.coverage.score < 0.1
    assert engine.stream.state is StreamState.LIVE, "it is not wrong, only cold"
    assert await engine.claimed(tokens(0)) == 12
    with structlog.testing.capture_logs() as logs:
        for number in range(1, 60):
            engine.store(tokens(number))
            await engine.ask(tokens(number), 12)
    assert len(told(logs, "kv index covers")) == 1


@pytest.mark.parametrize("case", ["on_its_way", "rounding", "little", "host", "unmatched"])
async def test_what_is_no_lack_of_the_index(index, clock, case: str) -> None:
    engine = Engine(index)
    engine.store(tokens(0))
    for number in range(1, 40):
        prompt = tokens(number)
        if case == "on_its_way":  # a neighbour's prompt, stored while this one waited
            late = Prompt(prompt)
            asked = await index.match("m", late)
            decision = Leg(engine.target, DecisionReason.NO_MATCH, 1, 0, 0, 0, 12, PAGE, 49)
            expectation = index.expect(engine.target, asked)
            sent = index.sent(decision, asked)
            sent.completed(12 * PAGE)  # the answer is quicker than the event
            engine.store(prompt)
            assert expectation is not None and expectation.over
            clock.now += 2.0
        elif case == "rounding":
            await engine.ask(prompt, 1)
        elif case == "little":
            await engine.ask(tokens(number, 100), 10)
        elif case == "host":
            engine.store(prompt, medium="CPU_PINNED")
            await engine.ask(prompt, 12)
        else:
            assert index.sent(decision_without(engine), PromptMatch([], Prompt(prompt))) is None
    if case != "unmatched":
        await engine.ask(tokens(0), 12)
        assert engine.status.witness.coverage._samples == 40
    assert engine.status.witness.coverage.score == 1.0


def decision_without(engine: Engine) -> Leg:
    """Of a prompt that was not looked up."""
    return Leg(engine.target, DecisionReason.UNMATCHABLE, 1, 0, 0)


async def test_salts_that_the_events_do_not_tell_are_told_as_such(index) -> None:
    engine = Engine(index)
    for number in range(40):
        engine.store(tokens(number))
    with structlog.testing.capture_logs() as logs:
        for number in range(160):
            if number % 4:
                await engine.ask(tokens(1000 + number), 12, SALTED)
            else:
                await engine.ask(tokens(number % 40), 12)
    (line,) = told(logs, "kv index misses blocks that the worker has cached")
    assert (line["some_namespaces_only"], line["refilling"]) == (True, False)


# --- refilling ----------------------------------------------------------------------------------------------------


class Repairer:
    def __init__(self) -> None:
        self.running = False
        self.started = 0

    def start(self) -> None:
        self.started += 1


@pytest.mark.parametrize("oldest", [0, 3, None])
async def test_a_refill_gives_nothing_up_for_less(index, oldest: int | None) -> None:
    """The stream starts over only where the buffer goes back to its beginning."""
    engine = Engine(index)
    for number in range(3):
        engine.store(tokens(number))
    (rank,) = index._ranks[engine.worker]
    repairer = Repairer()

    async def fetch(start: int) -> Any:
        assert start == 0
        if oldest is None:
            yield ReplayEnd.TIMEOUT
        else:
            yield Frame(oldest, engine.published[0])

    refill = Refill(rank.feed, repairer, fetch)  # type: ignore[arg-type]
    assert refill.start()
    assert not refill.start(), "one at a time"
    while refill._task is not None:
        await asyncio.sleep(0)
    assert repairer.started == 1
    assert (engine.stream.expected is None) == (oldest == 0)
    assert await engine.claimed(tokens(1)) == (0 if oldest == 0 else 12)


async def test_refilling_is_tried_once_and_not_where_the_index_forgot_by_itself(index, clock) -> None:
    for forgot in (False, True):
        engine = Engine(index, int(forgot))
        engine.store(tokens(0))
        tried: list[float] = []
        watch = engine.status.witness
        watch._refill = lambda seen=tried: not seen.append(clock.now)
        engine.stream.counters.forgotten = int(forgot)
        for _round in range(4):
            clock.now += 600.0
            for number in range(1, 40):
                await engine.ask(tokens(number), 12)
            for _ in range(40):
                await engine.ask(tokens(0), 12)
        assert len(tried) == (0 if forgot else 1)


# --- silence ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["waiting", "live", "untrusted", "suspended", "no_prefix_cache", "behind"])
async def test_only_a_followed_rank_that_could_publish_can_be_silent(index, clock, state: str) -> None:
    engine = Engine(index, keeps_prefixes=state != "no_prefix_cache")
    if state != "waiting":
        engine.publish([{"type": "AllBlocksCleared"}])
    if state == "untrusted":
        engine.stream.observe(Frame(7, b""))
    elif state == "suspended":
        engine.stream.suspend()
    watch = engine.status.witness
    if state == "behind":
        watch._behind = lambda: True
    with structlog.testing.capture_logs() as logs:
        for number in range(80):
            clock.now += 1.0
            await engine.ask(tokens(number), 0)
    silent = state in ("waiting", "live")
    assert engine.status.witness.silent is silent
    lines = told(logs, "worker serves prompts and publishes no cache events")
    assert len(lines) == silent
    if silent:
        assert "nothing answers" in lines[0]["check"], "port 1 is closed"


async def test_stores_below_an_unknown_parent_are_no_silence(index, clock) -> None:
    """The router came late: what it cannot name is published all the same."""
    engine = Engine(index)
    watch = engine.status.witness
    for number in range(100):
        clock.now += 1.0
        orphan = {"type": "BlockStored", "block_hashes": [number], "parent_block_hash": 10**9,
                  "token_ids": [1, 2, 3, 4], "block_size": PAGE, "medium": "GPU"}  # fmt: skip
        if number % 20 == 0:
            engine.publish([orphan])
        await engine.ask(tokens(number), 0)
    assert not watch.silent


async def test_prompts_the_worker_had_all_of_store_nothing_new(index, clock) -> None:
    engine = Engine(index)
    engine.publish([{"type": "AllBlocksCleared"}])
    watch = engine.status.witness
    for number in range(100):
        clock.now += 1.0
        await engine.ask(tokens(number), 12)
    assert not watch.silent
