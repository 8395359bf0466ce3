"""Quiet streams: when their workers are asked, what the answer says, and that asking alone withholds nothing."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from sgl_router.kv_events import BlockHasher, BlockTree, DistrustReason, EventStream, KvIndex, StreamState
from sgl_router.kv_events.follow import tail_gap as module
from sgl_router.kv_events.follow.pump import EventPump, Feed
from sgl_router.kv_events.follow.repair import Repairer, RepairOutcome
from sgl_router.kv_events.follow.replay import ReplayEnd
from sgl_router.kv_events.follow.tail_gap import QuietOutcome, QuietWatch, TailGapCheck, Watched
from sgl_router.kv_events.follow.wire import Frame
from sgl_router.workers import KvEventSource, Worker, WorkerInfo

# --- when -------------------------------------------------------------------------------------------------------


def test_due_once_it_was_quiet_for_long_enough() -> None:
    watch = QuietWatch(2.0)
    assert not watch.due(10.0, 5, idle=True)
    assert not watch.due(11.9, 5, idle=True)
    assert watch.due(12.0, 5, idle=True)


def test_a_new_frame_begins_the_time_anew() -> None:
    watch = QuietWatch(2.0)
    watch.due(10.0, 5, idle=True)
    assert not watch.due(12.0, 6, idle=True)
    assert not watch.due(13.9, 6, idle=True)
    assert watch.due(14.0, 6, idle=True)


def test_what_is_not_idle_is_not_quiet() -> None:
    watch = QuietWatch(2.0)
    watch.due(10.0, 5, idle=True)
    assert not watch.due(13.0, 5, idle=False)
    assert not watch.due(14.0, 5, idle=True)
    assert watch.due(15.0, 5, idle=True)


def test_verified_is_not_asked_about_again_until_a_new_frame() -> None:
    watch = QuietWatch(2.0)
    watch.due(10.0, 5, idle=True)
    watch.verified(5)
    assert not watch.due(1e6, 5, idle=True)
    assert not watch.due(1e6 + 1, 6, idle=True)
    assert watch.due(1e6 + 3, 6, idle=True)


def test_stirred_is_asked_about_again() -> None:
    watch = QuietWatch(2.0)
    watch.due(10.0, 5, idle=True)
    watch.verified(5)
    watch.stirred()
    assert not watch.due(20.0, 5, idle=True)
    assert watch.due(22.0, 5, idle=True)


@pytest.mark.parametrize("stirred", [True, False])
def test_an_answer_to_an_old_question_verifies_nothing(stirred: bool) -> None:
    watch = QuietWatch(2.0)
    watch.due(10.0, 5, idle=True)
    if stirred:
        watch.stirred()
    else:
        watch.due(12.0, 6, idle=True)
    watch.verified(5)
    frames = 5 if stirred else 6
    watch.due(12.0, frames, idle=True)
    assert watch.due(14.0, frames, idle=True)


def test_who_does_not_answer_is_asked_ever_more_seldom() -> None:
    watch = QuietWatch(2.0)
    now, asked, frames = 0.0, [], 0
    while now < 2_000:
        frames += 1 if now % 100 == 0 else 0  # new frames do not make an endpoint answer
        if watch.due(now, frames, idle=True):
            asked.append(now)
            watch.unanswered(now)
        now += 1
    pauses = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert pauses[:6] == [4, 8, 16, 32, 64, 128]
    assert 300 <= max(pauses) <= 302
    watch.answers()
    watch.due(now, frames, idle=True)
    assert watch.due(now + 2, frames, idle=True)


# --- asking -----------------------------------------------------------------------------------------------------


class Engine:
    """A stream with its pump and repairer, and a replay endpoint that does as it is told."""

    def __init__(self, check: TailGapCheck) -> None:
        hasher = BlockHasher(4, secret=3)
        self.states: list[StreamState] = []
        self.live: deque[list[bytes]] = deque()
        self.buffer: list[Frame] = []
        self.asked: list[int] = []
        self.taken = 0
        self.silent = 0
        """So many questions go unanswered."""
        self.meanwhile: Callable[[], None] = lambda: None
        """What happens between a question and its answer."""
        tree = BlockTree()
        self.stream = EventStream(
            tree, lambda size, bigram: hasher, page_size=4, changed=lambda stream: self._changed(stream)
        )
        self.pump = EventPump(tree, turn_budget_secs=1.0, max_message_bytes=1 << 20)
        self.feed = Feed(self, self.stream)
        self.outcomes: list[RepairOutcome] = []
        self.watched: Watched | None = None
        self.repairer = Repairer(self.feed, self.pump, self.replay, finished=self._finished)
        self.feed.repair = lambda outcome: self.repairer.start()
        target: Any = SimpleNamespace(worker=SimpleNamespace(id="w"), dp_rank=0)
        self.watched = check.follow(target, self.feed, self.repairer, self.replay)

    def _changed(self, stream: EventStream) -> None:
        self.states.append(stream.state)
        if self.watched is not None:
            self.watched.stirred()

    def _finished(self, outcome: RepairOutcome) -> None:
        self.outcomes.append(outcome)
        assert self.watched is not None
        self.watched.repaired(outcome)

    def publish(self, *, lost: bool = False) -> None:
        frame = Frame(len(self.buffer), msgspec.msgpack.encode([1.0, [], len(self.buffer)]))
        self.buffer.append(frame)
        if not lost:
            self.deliver(frame)

    def deliver(self, frame: Frame) -> None:
        self.live.append([b"", frame.seq.to_bytes(8, "big"), frame.payload])
        self.pump.wake(self.feed)

    def receive(self) -> list[bytes] | None:
        return self.live.popleft() if self.live else None

    async def replay(self, start: int) -> AsyncGenerator[Frame | ReplayEnd, None]:
        self.asked.append(start)
        found = self.buffer[start:]
        await asyncio.sleep(0)
        self.meanwhile()
        if self.silent:
            self.silent -= 1
            yield ReplayEnd.TIMEOUT
            return
        for frame in found:
            self.taken += 1
            yield frame
        yield ReplayEnd.COMPLETE


MakeEngine = Callable[..., Engine]


@pytest.fixture
async def check(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TailGapCheck]:
    monkeypatch.setattr(module, "_LOOK_SECS", (0.005, 0.005))
    monkeypatch.setattr(module, "_GRACE_SECS", 0.02)
    check = TailGapCheck(0.02, rng=random.Random(1))
    yield check
    for watched in list(check._watched):
        watched.close()


async def until(condition: Callable[[], bool], what: str) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + 120
    while not condition():
        assert loop.time() < deadline, what
        await asyncio.sleep(0.002)


async def test_nothing_lost_is_verified_without_withholding_anything(check: TailGapCheck) -> None:
    engine = Engine(check)
    for _ in range(3):
        engine.publish()
    await until(lambda: check.outcomes[QuietOutcome.VERIFIED] == 1, "verified")
    assert engine.states == [StreamState.LIVE]
    engine.publish()
    await until(lambda: check.outcomes[QuietOutcome.VERIFIED] == 2, "verified again")
    assert (engine.asked, engine.outcomes) == ([3, 4], [])
    assert engine.states == [StreamState.LIVE]


async def test_what_was_lost_last_is_repaired_and_then_verified(check: TailGapCheck) -> None:
    engine = Engine(check)
    engine.publish()
    for _ in range(4):
        engine.publish(lost=True)
    await until(lambda: check.outcomes[QuietOutcome.VERIFIED] == 1, "verified")
    assert check.outcomes[QuietOutcome.LOST] == 1
    assert engine.outcomes == [RepairOutcome.REPAIRED]
    assert engine.asked == [1, 1, 5]
    assert engine.taken == 1 + 4, "the question takes one frame, the repair all of them"
    assert engine.stream.expected == 5
    assert engine.stream.state is StreamState.LIVE


async def test_live_frames_overtaken_by_the_answer_are_not_lost(check: TailGapCheck) -> None:
    engine = Engine(check)
    engine.publish()
    engine.publish(lost=True)

    def arrives() -> None:
        engine.meanwhile = lambda: None
        asyncio.get_running_loop().call_later(0.005, engine.deliver, engine.buffer[1])

    engine.meanwhile = arrives
    await until(lambda: check.outcomes[QuietOutcome.VERIFIED] == 1, "verified")
    assert check.outcomes[QuietOutcome.OVERTAKEN] == 1
    assert check.outcomes[QuietOutcome.LOST] == 0
    assert (engine.outcomes, engine.states) == ([], [StreamState.LIVE])


async def test_frames_that_arrive_before_an_answer_are_asked_about_again(check: TailGapCheck) -> None:
    engine = Engine(check)
    engine.publish()

    def meanwhile() -> None:
        engine.meanwhile = lambda: None
        engine.publish()
        engine.publish(lost=True)

    engine.meanwhile = meanwhile
    await until(lambda: check.outcomes[QuietOutcome.VERIFIED] == 1, "verified")
    assert check.outcomes[QuietOutcome.OVERTAKEN] == 1
    assert engine.stream.expected == 3


async def test_no_answer_changes_nothing_and_is_asked_for_again(check: TailGapCheck) -> None:
    engine = Engine(check)
    engine.publish()
    engine.silent = 3
    await until(lambda: check.outcomes[QuietOutcome.VERIFIED] == 1, "verified")
    assert check.outcomes[QuietOutcome.UNANSWERED] == 3
    assert engine.states == [StreamState.LIVE]


async def test_what_is_lost_and_not_to_be_had_leaves_nothing_to_claim(check: TailGapCheck) -> None:
    engine = Engine(check)
    engine.publish()
    engine.publish(lost=True)

    def goes_silent() -> None:
        if len(engine.asked) > 1:
            engine.silent = 1000

    engine.meanwhile = goes_silent
    await until(lambda: engine.stream.state is StreamState.UNTRUSTED, "untrusted")
    assert engine.stream.untrusted_for is DistrustReason.GAP
    assert engine.outcomes == [RepairOutcome.FAILED]


async def test_a_failed_repair_of_something_else_is_not_held_against_the_stream(check: TailGapCheck) -> None:
    engine = Engine(check)
    engine.publish()
    await until(lambda: engine.stream.state is StreamState.LIVE, "live")
    engine.silent = 1
    engine.repairer.start()
    await until(lambda: engine.outcomes == [RepairOutcome.FAILED], "failed")
    await until(lambda: check.outcomes[QuietOutcome.VERIFIED] == 1, "verified")
    assert engine.stream.state is StreamState.LIVE


@pytest.mark.parametrize("how", ["suspended", "untrusted", "waiting"])
async def test_only_live_streams_are_asked_about(check: TailGapCheck, how: str) -> None:
    engine, other = Engine(check), Engine(check)
    other.publish()
    if how != "waiting":
        engine.publish()
        await until(lambda: engine.stream.state is StreamState.LIVE, "live")
    if how == "suspended":
        engine.stream.suspend()
    elif how == "untrusted":
        engine.stream.distrust(DistrustReason.GAP)
    for frames in range(1, 4):
        await until(lambda frames=frames: check.outcomes[QuietOutcome.VERIFIED] == frames, "the other is verified")
        other.publish()
    assert engine.asked == []


async def test_a_reconnected_stream_is_asked_about_again(check: TailGapCheck) -> None:
    engine = Engine(check)
    engine.publish()
    await until(lambda: check.outcomes[QuietOutcome.VERIFIED] == 1, "verified")
    engine.stream.suspend()
    engine.stream.reconnected()
    engine.stream.confirm(same_process=True)
    engine.repairer.start()
    await until(lambda: check.outcomes[QuietOutcome.VERIFIED] == 2, "verified again")
    assert engine.asked == [1, 0, 1]  # the repair asks for the last frame again: it shows who publishes


async def test_never_with_zero() -> None:
    check = TailGapCheck(0.0)
    engine = Engine(check)
    engine.publish()
    await until(lambda: engine.stream.state is StreamState.LIVE, "live")
    assert (check._timer, list(check._watched)) == (None, [])
    assert engine.watched is not None
    engine.watched.close()


async def test_a_fleet_gone_quiet_is_not_asked_all_at_once(check: TailGapCheck, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "_ASKED_PER_LOOK", 5)
    asked: list[int] = []
    monkeypatch.setattr(check, "_look_later", lambda: None)
    engines = [Engine(check) for _ in range(12)]
    delays = {}
    for engine in engines:
        engine.publish()
        assert engine.watched is not None
        monkeypatch.setattr(engine.watched, "ask", lambda delay, e=engine: delays.setdefault(e, delay))
    await until(lambda: all(engine.stream.state is StreamState.LIVE for engine in engines), "live")
    check._look()
    await until(lambda: check._look() or bool(delays), "due")
    asked.append(len(delays))
    assert asked == [5]
    assert len(set(delays.values())) == 5
    assert all(0 <= delay <= check._look_secs for delay in delays.values())


async def test_few_wait_for_an_answer_at_once(check: TailGapCheck) -> None:
    going = most = 0
    release = asyncio.Event()

    async def slow(start: int) -> AsyncGenerator[Frame | ReplayEnd, None]:
        nonlocal going, most
        going += 1
        most = max(most, going)
        await release.wait()
        going -= 1
        yield ReplayEnd.COMPLETE

    engines = [Engine(check) for _ in range(12)]
    for engine in engines:
        assert engine.watched is not None
        engine.watched._fetch = slow
        engine.publish()
    await until(lambda: all(one.watched and one.watched._task for one in engines), "all are to be asked")
    await until(lambda: going == 4, "four are")
    release.set()
    await until(lambda: check.outcomes[QuietOutcome.VERIFIED] == 12, "all are verified")
    assert most == 4


async def test_closed_while_asked_leaves_nothing_behind(check: TailGapCheck) -> None:
    engine = Engine(check)
    closed = []

    async def never(start: int) -> AsyncGenerator[Frame | ReplayEnd, None]:
        engine.asked.append(start)
        try:
            await asyncio.Event().wait()
            yield ReplayEnd.COMPLETE
        finally:
            closed.append(start)

    assert engine.watched is not None
    engine.watched._fetch = never
    engine.publish()
    await until(lambda: bool(engine.asked), "asked")
    engine.watched.close()
    await until(lambda: not any("quiet" in task.get_name() for task in asyncio.all_tasks()), "no task is left")
    assert closed == [1]
    assert (check._timer, list(check._watched)) == (None, [])
    assert set(check.outcomes.values()) == {0}


async def test_the_index_watches_what_can_be_replayed_and_lets_go_of_it() -> None:
    index = KvIndex(quiet_check_secs=0.1)
    for replay in (None, 9):
        source = KvEventSource(host="127.0.0.1", port_base=1, topic="kv", replay_port_base=replay)
        worker = Worker("http://w:1", WorkerInfo(served_model_name="m", block_size=4, dp_size=2, kv_source=source))
        index.worker_added(worker)
        assert len(index.quiet._watched) == (2 if replay else 0)
        index.worker_removed(worker)
        assert (list(index.quiet._watched), index.quiet._timer) == ([], None)
    index.close()
