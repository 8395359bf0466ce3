"""Following the event streams of all workers: sockets opened, streams repaired, their mishaps told.

Guarantees: a stream that may have lost an event claims nothing until it is repaired or starts over; an endpoint that
several workers name is followed for none of them.
Failure modes: without a replay endpoint an untrusted stream starts over from what is published next; without file
descriptors a rank is routed without events.
Why a base class of `KvIndex`: what is followed and what is matched share the table, and nothing between them is worth a
wire. What the index must know of a stream goes through two hooks, `_claims_changed` and `_gone`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import TYPE_CHECKING

import structlog
import zmq
import zmq.asyncio

from sgl_router.descriptors import EVENT_SOCKET, Descriptors, remedy, spare, tell_shortage
from sgl_router.kv_events.follow.endpoints import Endpoints
from sgl_router.kv_events.follow.pump import EventPump, Feed
from sgl_router.kv_events.follow.refill import Refill
from sgl_router.kv_events.follow.repair import Repairer, RepairOutcome
from sgl_router.kv_events.follow.replay import ReplayEnd, replay
from sgl_router.kv_events.follow.status import IndexTotals, RankStatus
from sgl_router.kv_events.follow.stream import DistrustReason, EventStream, FrameOutcome, Remark, StreamState
from sgl_router.kv_events.follow.tail_gap import TailGapCheck, Watched
from sgl_router.kv_events.follow.wire import Frame, Tier, WireError
from sgl_router.kv_events.index.eviction import MemoryBound
from sgl_router.kv_events.index.hashing import BlockHasher
from sgl_router.kv_events.index.tree import BlockTree
from sgl_router.kv_events.index.withheld import WithheldNamespaces
from sgl_router.kv_events.index.witness import Witness
from sgl_router.kv_events.snapshot.restore import WarmStart
from sgl_router.upstream.zmq_subscriber import SPARE_DESCRIPTORS, Subscriber, make_context

if TYPE_CHECKING:
    from sgl_router.kv_events.snapshot.records import Snapshot
    from sgl_router.workers import KvEventSource, Target, Worker

__all__ = ["FollowedRank", "StreamFollower"]

log = structlog.get_logger(__name__)

_REPLAYS_AT_ONCE = 8
_MAX_RESYNC_SECS = 600.0
_WARMING_SECS = 10.0
_FORGIVEN_SECS = 3_600.0
_REFUSED_LOG_SECS = 60.0


class FollowedRank:
    """A target's stream, its socket, the feed that joins them, and what repairs the stream where it can be."""

    def __init__(
        self,
        target: Target,
        stream: EventStream,
        source: KvEventSource,
        tree: BlockTree,
        withheld: WithheldNamespaces,
        clock: Callable[[], float],
    ) -> None:
        self.target = target
        self.stream = stream
        self.source = source
        self.endpoint = source.endpoint(target.dp_rank)
        self.witness = Witness(
            target,
            stream,
            tree,
            withheld,
            clock=clock,
            refill=lambda: self.refill is not None and self.refill.start(),
            connected=lambda: self.subscriber is not None and self.subscriber.connected,
            behind=lambda: self.feed is not None and self.feed.queued,
            stores=target.worker.info.keeps_prefixes,
        )
        self.subscriber: Subscriber | None = None
        self.feed: Feed | None = None
        self.repairer: Repairer | None = None
        self.quiet: Watched | None = None
        self.refill: Refill | None = None
        self.resync: asyncio.TimerHandle | None = None
        self.resyncs = 0
        self.resynced_at = 0.0
        self.lag_secs = 0.0
        self.warm_by = asyncio.get_running_loop().time() + _WARMING_SECS
        self.slot = stream.slot
        # Refused frames by what became of them: not logged since the last one that was, and when that was.
        self.refused: dict[str, tuple[int, float | None]] = {}

    def close(self) -> None:
        if self.refill is not None:
            self.refill.close()
        if self.resync is not None:
            self.resync.cancel()
        self.unsubscribe()
        self.stream.close()

    def unsubscribe(self) -> None:
        if self.quiet is not None:
            self.quiet.close()
        if self.repairer is not None:
            self.repairer.close()
        if self.subscriber is not None:
            self.subscriber.close()
        self.subscriber = self.feed = self.repairer = self.quiet = None


class StreamFollower:
    """A listener of the registry: one stream for each rank of a worker that publishes."""

    def __init__(
        self,
        *,
        receive_high_water_mark: int = 100_000,
        max_message_bytes: int = 64 << 20,
        turn_budget_secs: float = 0.002,
        replay_idle_secs: float = 2.0,
        resync_secs: float = 30.0,
        quiet_check_secs: float = 2.0,
        max_blocks: int = 40_000_000,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
        descriptors: Descriptors | None = None,
    ) -> None:
        self._descriptors = descriptors or Descriptors()
        self.tree = BlockTree()
        self._secret = secrets.randbits(64)
        self._hashers: dict[tuple[int, bool], BlockHasher] = {}
        self._ranks: dict[Worker, list[FollowedRank]] = {}
        self._by_stream: dict[EventStream, FollowedRank] = {}
        self._by_target: dict[Target, FollowedRank] = {}
        self._endpoints: Endpoints[FollowedRank] = Endpoints()
        self._hwm = receive_high_water_mark
        # Received, to be counted and dropped; libzmq closes the connection of a peer that sends more.
        self._transport_bytes = 2 * max_message_bytes
        self._replay_idle_secs = replay_idle_secs
        self._resync_secs = resync_secs
        self._wall_clock = wall_clock
        self._clock = clock
        self.pump = EventPump(
            self.tree,
            turn_budget_secs=turn_budget_secs,
            max_message_bytes=max_message_bytes,
            on_failure=self._on_failure,
            on_lost=self._say_refused,
            on_frame=self._on_frame,
            on_batch=self._on_batch,
        )
        self.warm = WarmStart(self.pump)
        self._withheld = WithheldNamespaces()
        self.quiet = TailGapCheck(quiet_check_secs)
        self.copying = asyncio.Lock()
        """Held while a rank is copied for a snapshot: one at a time."""
        self.bound = MemoryBound(
            max_blocks,
            self._by_stream.keys,
            pinned=self._copied,
            retired=lambda: self.tree.retired_blocks,
            sweep=self.tree.sweep,
        )
        self.pump.chore = self.bound.chore
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._replay_context: zmq.asyncio.Context | None = None
        self._replays = asyncio.Semaphore(_REPLAYS_AT_ONCE)
        self.totals = IndexTotals()
        self.on_reconnect: Callable[[Worker], None] = lambda worker: None
        """Called when a worker whose blocks were known is back on the line: find out who it is and `confirm` it."""

    def prepare(self) -> None:
        """Start what event sockets share while there are descriptors for it, as is the case when a process begins."""
        if self._context is None:
            self._context = make_context()
            self._context.socket(zmq.PAIR).close(0)  # the first socket starts the threads

    # --- workers ------------------------------------------------------------------------------------------------

    def worker_added(self, worker: Worker) -> None:
        """Subscribe to every rank of a worker that publishes; one that does not is routed by load alone."""
        source = worker.info.kv_source
        if source is None:
            return
        ranks = self._ranks[worker] = []
        for target in worker.targets:
            if not self._descriptors.claim(EVENT_SOCKET):
                break
            stream = EventStream(
                self.tree,
                self._hasher,
                page_size=worker.info.block_size,
                bigram=worker.info.bigram,
                announced=worker.info.block_size_reported,
                changed=self._changed,
                remarks=self._remark,
            )
            rank = FollowedRank(target, stream, source, self.tree, self._withheld, self._clock)
            self._by_stream[stream] = rank
            self._by_target[target] = rank
            ranks.append(rank)
            others = self._endpoints.add(rank.endpoint, source.topic, rank)
            if others:
                self._shared(rank, others)
                continue
            self._subscribe(rank)
            if rank.feed is not None:
                self.warm.offer(target, rank.feed)
        left_out = len(worker.targets) - len(ranks)
        if left_out:
            log.warning(
                "too few file descriptors for the kv events of all ranks: the rest is routed without events",
                worker=worker.id,
                url=worker.url,
                ranks=len(worker.targets),
                left_out=left_out,
                limit=self._descriptors.limit,
                set=remedy(number=self._descriptors.advice(left_out * EVENT_SOCKET)),
            )
        self._ranks_changed(worker)

    def worker_removed(self, worker: Worker) -> None:
        """Forget the worker's blocks and close its sockets; nothing of it can be matched when this returns."""
        for rank in self._ranks.pop(worker, ()):
            self._unfollow(rank)
            self._gone(rank)
            self._withheld.forget(rank.stream)
            rank.close()
            self._descriptors.give_back(EVENT_SOCKET)
            del self._by_stream[rank.stream]
            del self._by_target[rank.target]
            for left in self._endpoints.remove(rank.endpoint, rank.source.topic, rank):
                log.info("kv event endpoint no longer shared", endpoint=left.endpoint, worker=left.target.worker.id)
                left.stream.resync()
                self._subscribe(left)
        self._ranks_changed(worker)
        self.pump.schedule()

    def close(self) -> None:
        """Close every socket and the ZMQ context."""
        self.warm.close()
        for worker in list(self._ranks):
            self.worker_removed(worker)
        if self._context is not None:
            self._context.term()
            self._context = None
        if self._replay_context is not None:
            self._replay_context.destroy(linger=0)
            self._replay_context = None

    # --- snapshots ----------------------------------------------------------------------------------------------

    @property
    def secret(self) -> int:
        """What the keys are hashed with: they mean something only together with it."""
        return self._secret

    def adopt(self, snapshot: Snapshot) -> None:
        """Begin from a snapshot: its ranks are taken over as their workers register. ValueError once there are any."""
        if self._hashers:
            raise ValueError("a snapshot is adopted before the first worker, or not at all: keys exist already")
        self._secret = snapshot.secret
        self.warm.adopt(snapshot)

    def followed(self) -> list[tuple[Target, Feed]]:
        """Every followed rank with its feed."""
        return [(rank.target, rank.feed) for rank in self._by_stream.values() if rank.feed is not None]

    # --- connections --------------------------------------------------------------------------------------------

    def _shared(self, rank: FollowedRank, others: list[FollowedRank]) -> None:
        """Several workers name one endpoint. One of them publishes there, or none of them: no rank may claim it."""
        sharing = [rank, *others]
        log.warning(
            "kv event endpoint is named by several workers, followed for none of them",
            endpoint=rank.endpoint,
            workers=[one.target.worker.url for one in sharing],
            dp_ranks=[one.target.dp_rank for one in sharing],
            hint='give each worker a port of its own in --kv-events-config ("endpoint": "tcp://*:PORT")',
        )
        for one in sharing:
            self._unfollow(one)
            one.unsubscribe()
            one.stream.distrust(DistrustReason.SHARED)

    def _unfollow(self, rank: FollowedRank) -> None:
        if rank.feed is not None:
            self.pump.drop(rank.feed)
            self.warm.withdraw(rank.target, rank.feed)

    def _copied(self, stream: EventStream) -> bool:
        """Whether a job looks at the stream: what is forgotten under a copy would make it begin again, for ever in a
        full index."""
        feed = self._by_stream[stream].feed
        return feed is not None and feed.job is not None

    def _subscribe(self, rank: FollowedRank) -> None:
        self.prepare()
        assert self._context is not None
        source = rank.source
        subscriber = rank.subscriber = Subscriber(
            self._context,
            rank.endpoint,
            source.topic,
            receive_high_water_mark=self._hwm,
            max_message_bytes=self._transport_bytes,
            readable=lambda _: self.pump.wake(feed),
            connection=lambda _, connected: self._connection(rank, connected),
            lost=lambda _: rank.stream.suspend(),
            of={"worker": rank.target.worker.id, "url": rank.target.worker.url, "dp_rank": rank.target.dp_rank},
        )
        feed = rank.feed = Feed(subscriber, rank.stream)
        endpoint = source.replay_endpoint(rank.target.dp_rank)
        if endpoint is not None:
            fetch = partial(self._replay, endpoint, subscriber)
            rank.repairer = Repairer(feed, self.pump, fetch, finished=lambda outcome: self._repaired(rank, outcome))
            rank.refill = Refill(feed, rank.repairer, fetch)
            rank.quiet = self.quiet.follow(rank.target, feed, rank.repairer, fetch)
            feed.repair = lambda outcome: rank.repairer.start() if rank.repairer is not None else None
            # What the worker published before we came is replayed first, as soon as the live socket is connected:
            # nothing can then fall between the two.
            feed.paused = True

    async def _replay(self, endpoint: str, live: Subscriber, start: int) -> AsyncGenerator[Frame | ReplayEnd, None]:
        """One of a few replays at a time: each may bring a whole buffer, and its receiving side is unbounded."""
        if not spare(SPARE_DESCRIPTORS):
            tell_shortage(errno.EMFILE, "missed kv events are not replayed")
            yield ReplayEnd.TIMEOUT
            return
        if self._replay_context is None:
            # Not the event sockets' context: its I/O thread must not be busy with history while events come in.
            self._replay_context = zmq.asyncio.Context()
        frames = replay(
            self._replay_context,
            endpoint,
            start,
            idle_secs=self._replay_idle_secs,
            max_message_bytes=self._transport_bytes,
            ipv6=live.ipv6,
        )
        async with self._replays, contextlib.aclosing(frames):
            async for item in frames:
                yield item

    def _connection(self, rank: FollowedRank, connected: bool) -> None:
        if not connected:
            return  # what was queued before the break is applied; the claims are withheld since it happened
        rank.stream.reconnected()
        if rank.stream.expected is not None:
            self.on_reconnect(rank.target.worker)
        if rank.repairer is not None:
            rank.repairer.start()

    def _repaired(self, rank: FollowedRank, outcome: RepairOutcome) -> None:
        self.totals.repairs[outcome] = self.totals.repairs.get(outcome, 0) + 1
        if rank.quiet is not None:
            rank.quiet.repaired(outcome)
        stream = rank.stream
        say = log.warning if outcome is RepairOutcome.FAILED else log.info
        say(
            f"kv event stream {outcome.value}",
            worker=rank.target.worker.id,
            dp_rank=rank.target.dp_rank,
            state=stream.state.value,
            complete=stream.complete,
            next_seq=stream.expected,
            blocks=stream.blocks_held,
        )

    def _changed(self, stream: EventStream) -> None:
        rank = self._by_stream.get(stream)
        if rank is None:
            return
        self._claims_changed(rank)
        rank.slot = stream.slot
        if rank.quiet is not None:
            rank.quiet.stirred()
        if stream.state is StreamState.UNTRUSTED and rank.resync is None and rank.feed is not None:
            # Not at once: an engine that floods or garbles its stream must not keep the router replaying.
            now = asyncio.get_running_loop().time()
            if now - rank.resynced_at > _FORGIVEN_SECS:
                rank.resyncs = 0
            first = stream.untrusted_for is DistrustReason.DISAGREEMENT and not rank.resyncs
            delay = 0.0 if first else min(self._resync_secs * 2 ** min(rank.resyncs, 10), _MAX_RESYNC_SECS)
            rank.resync = asyncio.get_running_loop().call_later(delay, self._resync, rank)

    def _resync(self, rank: FollowedRank) -> None:
        """An untrusted stream starts over: from the replay buffer, or, where that cannot help, from what comes next."""
        rank.resync = None
        stream = rank.stream
        if stream.state is not StreamState.UNTRUSTED or rank.feed is None:
            return
        rank.resyncs += 1
        rank.resynced_at = asyncio.get_running_loop().time()
        rank.feed.discard()
        replayable = rank.repairer is not None and stream.untrusted_for is not DistrustReason.DECODE
        self.totals.resyncs += 1
        log.info(
            "kv event stream starts over",
            worker=rank.target.worker.id,
            dp_rank=rank.target.dp_rank,
            untrusted_for=stream.untrusted_for.value if stream.untrusted_for else None,
            replay=replayable,
        )
        stream.resync()
        if replayable and rank.repairer is not None:
            rank.repairer.start()

    def confirm(self, worker: Worker) -> None:
        """Introspection found the worker unchanged. One that does not tell when it was started may be another
        process all the same: its streams start over."""
        for rank in self._ranks.get(worker, ()):
            if rank.subscriber is not None and rank.subscriber.connected:
                same = worker.info.started_at is not None
                if not same and rank.feed is not None:
                    rank.feed.discard()
                suspended = rank.stream.state is StreamState.SUSPENDED
                rank.stream.confirm(same_process=same)
                if not same and suspended and rank.repairer is not None:
                    rank.repairer.start()  # what was replayed before went with the old claims

    def _hasher(self, page_size: int, bigram: bool) -> BlockHasher:
        kind = (page_size, bigram)
        if kind not in self._hashers:
            self._hashers[kind] = BlockHasher(page_size, bigram=bigram, secret=self._secret)
        return self._hashers[kind]

    def _on_failure(self, stream: EventStream, error: WireError) -> None:
        self.totals.failures[error.reason] = self.totals.failures.get(error.reason, 0) + 1
        self._say_refused(stream, error)

    def _say_refused(self, stream: EventStream, error: WireError) -> None:
        rank = self._by_stream.get(stream)
        if rank is None:
            return
        if stream.state is StreamState.UNTRUSTED:
            became = "stream untrusted"
        elif stream.state is StreamState.REPAIRING:
            became = "asked for once more"
        else:
            became = "the number was known, nothing is lost"
        now = asyncio.get_running_loop().time()
        count, said_at = rank.refused.get(became, (0, None))
        if said_at is not None and now - said_at < _REFUSED_LOG_SECS:
            rank.refused[became] = (count + 1, said_at)
            return
        rank.refused[became] = (0, now)
        log.warning(
            f"kv event frame refused, {became}",
            worker=rank.target.worker.id,
            dp_rank=rank.target.dp_rank,
            reason=error.reason.value,
            detail=str(error),
            unlogged=count,
        )

    def _remark(self, stream: EventStream, remark: Remark, number: int) -> None:
        rank = self._by_stream.get(stream)
        if rank is None:
            return
        about = {"found": number, "announced": stream.hasher.page_size}
        if remark is Remark.GROUPS_UNTOLD:
            about = {"group": number}
        log.warning(remark.value, worker=rank.target.worker.id, dp_rank=rank.target.dp_rank, **about)

    def _on_frame(self, stream: EventStream, outcome: FrameOutcome, missing: int) -> None:
        if outcome is FrameOutcome.GAP:
            self.totals.gaps += 1
            self.totals.missing += missing
        elif outcome is FrameOutcome.RESTART:
            self.totals.restarts += 1
        rank = self._by_stream.get(stream)
        if rank is not None:
            say = log.debug if outcome is FrameOutcome.DUPLICATE else log.warning
            say(
                f"kv event sequence {outcome.value}",
                worker=rank.target.worker.id,
                dp_rank=rank.target.dp_rank,
                state=stream.state.value,
                next_seq=stream.expected,
                missing=missing,
            )

    def _on_batch(self, stream: EventStream, ts: float) -> None:
        rank = self._by_stream.get(stream)
        if rank is None:
            return
        if rank.witness.silence.silent:
            asyncio.get_running_loop().call_soon(lambda: rank.witness.silent)  # once this batch is applied
        if stream.state is not StreamState.REPAIRING:
            rank.lag_secs = max(0.0, self._wall_clock() - ts)

    # --- what the index does about it -----------------------------------------------------------------------------

    def _claims_changed(self, rank: FollowedRank) -> None:
        """A stream's state, or its slot, is another one; `rank.slot` is still the one before."""

    def _gone(self, rank: FollowedRank) -> None:
        """A rank is followed no more."""

    def _ranks_changed(self, worker: Worker) -> None:
        """A worker has come or gone."""

    def _expected_blocks(self, rank: FollowedRank) -> int:
        """Blocks that requests on their way will make it hold."""
        return 0

    def held_tokens(self, target: Target) -> int:
        """Tokens that a target has cached on its device, as its events say; 0 where it publishes none."""
        rank = self._by_target.get(target)
        if rank is None:
            return 0
        return rank.stream.held[Tier.GPU] * rank.stream.hasher.page_size

    def memory_bytes(self) -> int:
        """Bytes the blocks take, reckoned from the sizes of the tables: every block held twice counts twice."""
        return self.tree.memory_bytes() + sum(stream.memory_bytes() for stream in self._by_stream)

    # --- views --------------------------------------------------------------------------------------------------

    def warming(self, worker: Worker) -> bool:
        """Whether a new worker's history is still being replayed, for a bounded time after it came."""
        loop = asyncio.get_running_loop()
        return any(
            rank.repairer is not None and not rank.repairer.finished_once and loop.time() < rank.warm_by
            for rank in self._ranks.get(worker, ())
        )

    def status(self, worker: Worker) -> list[RankStatus]:
        """One entry per followed rank; empty for a worker without events."""
        return [
            RankStatus(
                dp_rank=rank.target.dp_rank,
                endpoint=rank.endpoint,
                connected=rank.subscriber.connected if rank.subscriber else False,
                state=rank.stream.state,
                complete=rank.stream.complete,
                untrusted_for=rank.stream.untrusted_for,
                next_seq=rank.stream.expected,
                page_size=rank.stream.hasher.page_size,
                bigram=rank.stream.hasher.bigram,
                blocks={tier.value: count for tier, count in rank.stream.held.items() if count},
                expected_blocks=self._expected_blocks(rank),
                lag_secs=rank.lag_secs,
                witness=rank.witness,
                stream=rank.stream,
            )
            for rank in self._ranks.get(worker, ())
        ]
