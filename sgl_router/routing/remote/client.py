"""Deciding where another process does: the data process's side of the socket."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import structlog

from sgl_router.errors import ErrorCode, InternalError, QueueFull, QueueTimeout, RouterError, RoutingUnavailable
from sgl_router.outcome import Outcome
from sgl_router.placement import Unmatched
from sgl_router.policies import PolicyInput
from sgl_router.routing.local_lease import LegLease, LocalLease
from sgl_router.routing.remote.explanations import Explanations
from sgl_router.routing.remote.fallback import UNAVAILABLE
from sgl_router.routing.remote.keys import PromptHasher
from sgl_router.routing.remote.lease import RemoteLease
from sgl_router.routing.remote.link import Link
from sgl_router.routing.remote.messages import (
    Choose,
    Chosen,
    Counts,
    End,
    Expired,
    Explain,
    Explained,
    FirstByte,
    Fleet,
    FromRouting,
    Hashing,
    Heard,
    Held,
    Hello,
    NobodyLeft,
    Readiness,
    Refused,
    WorkerGone,
    WorkerState,
    from_routing,
)
from sgl_router.routing.remote.replica import GONE
from sgl_router.workers import Permit

if TYPE_CHECKING:
    from sgl_router.load import ActiveLoad
    from sgl_router.placement import Placement
    from sgl_router.routing import LocalRouting, RouteRequest
    from sgl_router.routing.remote.replica import WorkerReplica
    from sgl_router.workers import Worker

__all__ = ["RemoteRouting"]

log = structlog.get_logger(__name__)

_ANSWER_SECS = 0.25
_EXPLAIN_SECS = 5.0
_TOKENS_PER_SEC = 1_000_000
_LOOK_SECS = 0.05
_RECONNECT_SECS = (0.02, 0.25)


class _Away(Exception):
    """No answer: decide here."""


class _Undecided:
    """A request that the routing process has been asked about. `by`: when the answer is overdue; `since`: when it was
    said to wait."""

    __slots__ = ("by", "future", "request", "since")

    def __init__(self, future: asyncio.Future[RemoteLease | None], request: RouteRequest, by: float) -> None:
        self.future = future
        self.request = request
        self.by = by
        self.since: float | None = None


class RemoteRouting:
    """See `routing.Routing`. Falls back to `fallback` while there is no connection, no answer in time, or the routing
    process does not read; after a missing answer it is not asked again until something is heard of it.

    Every lease is told to the routing process: as an answer, or declared to it. So its load is the sum of what all
    data processes carry, however often either side is started anew.
    """

    def __init__(
        self,
        path: str,
        mirror: WorkerReplica,
        load: ActiveLoad,
        fallback: LocalRouting,
        *,
        process: int = 0,
        answer_secs: float = _ANSWER_SECS,
        wait_secs: Mapping[str, float] | None = None,
        explain_secs: float = _EXPLAIN_SECS,
        fell_back: Callable[[str], None] = lambda model_id: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self._path = path
        self._mirror = mirror
        self._load = load
        self._fallback = fallback
        self._hello = Hello(process, os.getpid())
        self._answer_secs = answer_secs
        # By model, how long an answer may take that has been announced to take long.
        self._wait_secs = {model_id: secs + answer_secs for model_id, secs in (wait_secs or {}).items()}
        self._fell_back = fell_back
        self.on_started: Callable[[float], None] = lambda at: None
        """Told when the routing process was started, in Unix time."""
        self._reasons: list[str] = []
        self._decoder = from_routing(mirror.target)
        self._link: Link[FromRouting] | None = None
        self._hasher = PromptHasher()
        self._joined = asyncio.Event()
        self._stalled = False
        self._numbers = itertools.count(1)
        self._undecided: dict[int, _Undecided] = {}
        self._explanations = Explanations(explain_secs)
        self._leases: dict[int, RemoteLease] = {}
        self._looking: asyncio.TimerHandle | None = None

    @property
    def away(self) -> bool:
        """Whether decisions are made here for now."""
        link = self._link
        return link is None or self._stalled or link.congested or not self._joined.is_set()

    def unready(self) -> list[str]:
        """Why this router is not ready, as far as is known here: the routing process's own reasons."""
        return [UNAVAILABLE] if self.away else self._reasons

    @property
    def in_flight(self) -> int:
        """Leases not ended."""
        return len(self._leases)

    async def joined(self, within_secs: float) -> bool:
        """Until the routing process has told its workers."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._joined.wait(), within_secs)
        return self._joined.is_set()

    async def run(self) -> None:
        """Keep a connection to the routing process, until cancelled."""
        loop = asyncio.get_running_loop()
        pause = _RECONNECT_SECS[0]
        while True:
            link: Link[FromRouting] = Link(self._decoder, self._received, self._lost)
            try:
                await loop.create_unix_connection(lambda link=link: link, self._path)  # type: ignore[misc]
            except OSError:
                await asyncio.sleep(pause)
                pause = min(pause * 2, _RECONNECT_SECS[1])
                continue
            pause = _RECONNECT_SECS[0]
            self._link = link
            link.send(self._hello)
            for lease in self._leases.values():
                link.send(lease.declaration())
            try:
                await link.wait_lost()
            except BaseException:
                self._link = None  # nobody is away: this side ends
                await link.close()
                raise

    async def choose(self, request: RouteRequest, tried: set[Worker]) -> RemoteLease | None:
        try:
            return await self._ask(request, tried)
        except _Away:
            return await self._decide_here(request, tried)

    async def explain(self, request: RouteRequest) -> dict[str, Any]:
        """Never decided here: what this process would guess is not what the routing process would say."""
        try:
            link, tokens, keys = await self._keyed(request)
        except _Away:
            raise RoutingUnavailable(UNAVAILABLE) from None
        seq = next(self._numbers)
        link.send(
            Explain(
                seq,
                request.model_id,
                tokens,
                keys,
                request.namespace,
                request.unmatched,
                request.request_id,
                request.session,
            )
        )
        try:
            return await self._explanations.wait(seq)
        except (asyncio.CancelledError, RoutingUnavailable):
            self.tell(End(seq, Outcome.CLIENT_GONE, None))
            raise

    def send_counts(self, delta: bytes) -> bool:
        """Hand over what was counted; False while nobody can take it."""
        if self._link is None or not self._link.open or self._link.congested:
            return False
        self._link.send(Counts(delta))
        return True

    def send_heard(self) -> None:
        """Tell which workers' responses go on: an end or a first byte does not tell of a long stream."""
        if self._link is not None and self._link.open and not self._link.congested:
            heard = self._mirror.take_heard()
            if heard:
                self._link.send(Heard(heard))

    def tell(self, message: End | FirstByte) -> None:
        """About a lease; without a connection there is nobody who would have to know."""
        if self._link is not None:
            self._link.send(message)

    def forget(self, seq: int) -> None:
        self._leases.pop(seq, None)

    # --- asking -------------------------------------------------------------------------------------------------

    async def _keyed(self, request: RouteRequest) -> tuple[Link[FromRouting], int | None, dict[int, bytes]]:
        """Whom to request, how long the prompt is, and its keys. Raises _Away."""
        if self.away:
            raise _Away
        prompt, tokens, keys = request.prompt, None, {}
        if prompt is not None:
            tokens = self._hasher.told(request.model_id, prompt)
            if request.namespace is not None:
                keys = await self._hasher.keys(request.model_id, prompt, request.namespace)
        if self.away or self._link is None:
            raise _Away  # gone meanwhile, or another one, which does not know the workers by these numbers yet
        return self._link, tokens, keys

    async def _ask(self, request: RouteRequest, tried: set[Worker]) -> RemoteLease | None:
        link, tokens, keys = await self._keyed(request)
        seq = next(self._numbers)
        tried_there = [number for worker in tried if (number := self._mirror.generation(worker)) is not None]
        link.send(
            Choose(
                seq,
                request.model_id,
                tokens,
                keys,
                request.namespace,
                request.unmatched,
                request.request_id,
                request.session,
                tried_there,
                request.streamed,
                request.priority,
                request.fingerprint,
            )
        )
        future: asyncio.Future[RemoteLease | None] = asyncio.get_running_loop().create_future()
        patience = self._answer_secs + (tokens / _TOKENS_PER_SEC if tokens else 0.0)
        self._undecided[seq] = _Undecided(future, request, self.clock() + patience)
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(_LOOK_SECS, self._look)
        try:
            return await future
        except asyncio.CancelledError:
            if self._undecided.pop(seq, None) is not None:
                self.tell(End(seq, Outcome.CLIENT_GONE, None))
            elif not future.cancelled() and future.exception() is None and (lease := future.result()) is not None:
                lease.end(Outcome.CLIENT_GONE)
            raise

    def _look(self) -> None:
        """Give up on answers that are overdue. Runs only while some are outstanding."""
        self._looking = None
        now = self.clock()
        for seq, asked in list(self._undecided.items()):
            if now >= asked.by:
                if not self._stalled:
                    self._stalled = True
                    log.warning("routing process does not answer: this process decides by least load")
                del self._undecided[seq]
                self.tell(End(seq, Outcome.REJECTED, None))
                _away(asked.future)
        if self._undecided:
            self._looking = asyncio.get_running_loop().call_later(_LOOK_SECS, self._look)

    async def _decide_here(self, request: RouteRequest, tried: set[Worker]) -> RemoteLease | None:
        tokens = None if request.prompt is None else len(request.prompt)
        facts = PolicyInput(prompt_tokens=tokens, unmatched=request.unmatched or Unmatched.NOT_ASKED)
        local = await self._fallback.choose(request, tried, facts=facts)
        if local is None:
            return None
        self._fell_back(request.model_id)
        lease = self._hold(next(self._numbers), request, local)
        if self._link is not None:
            self._link.send(lease.declaration())
        return lease

    def _hold(self, seq: int, request: RouteRequest, local: LocalLease) -> RemoteLease:
        lease = self._leases[seq] = RemoteLease(self, seq, request, local)
        return lease

    # --- what is heard ------------------------------------------------------------------------------------------

    def _received(self, message: FromRouting) -> None:
        if self._stalled:
            self._stalled = False
            log.info("routing process answers again")
        if isinstance(message, Chosen):
            self._chosen(message)
        elif isinstance(message, NobodyLeft):
            asked = self._undecided.pop(message.seq, None)
            if asked is not None and not asked.future.done():
                asked.future.set_result(None)
        elif isinstance(message, Held):
            held = self._undecided.get(message.seq)
            if held is not None:  # its own bound ends the wait; this one is for a routing process that hangs
                held.since = self.clock()
                held.by = held.since + self._wait_secs.get(held.request.model_id, 0.0)
        elif isinstance(message, Refused):
            asked = self._undecided.pop(message.seq, None)
            if asked is None:
                self._explanations.refused(message.seq, _refusal(message))
            elif not asked.future.done():
                asked.future.set_exception(_refusal(message))
        elif isinstance(message, Explained):
            self._explanations.answered(message.seq, message.view)
        elif isinstance(message, Expired):
            lease = self._leases.get(message.seq)
            if lease is not None:
                lease.expire()
        elif isinstance(message, WorkerState):
            self._mirror.update(message)
        elif isinstance(message, WorkerGone):
            self._mirror.gone(message.generation)
        elif isinstance(message, Hashing):
            self._hasher.learn(message)
        elif isinstance(message, Readiness):
            self._reasons = message.reasons
            self.on_started(message.started_at)
        elif isinstance(message, Fleet):
            self._mirror.replace(message.workers)
            self._joined.set()
            log.info("joined the routing process", workers=len(message.workers), declared=len(self._leases))

    def _chosen(self, message: Chosen) -> None:
        asked = self._undecided.pop(message.seq, None)
        if asked is None:
            return  # given up: the routing process has been told, or is about to be
        future = asked.future
        if any(leg.target is GONE for leg in message.placement.legs):
            self.tell(End(message.seq, Outcome.REJECTED, None))  # removed since
            _away(future)
        elif future.done():  # cancelled in this very turn
            self.tell(End(message.seq, Outcome.CLIENT_GONE, None))
        else:
            lease = self._hold(message.seq, asked.request, self._here(asked.request, message.placement))
            if asked.since is not None:
                lease.waited_secs = self.clock() - asked.since
            future.set_result(lease)

    def _here(self, request: RouteRequest, placement: Placement) -> LocalLease:
        """This process's own account of a placement, for the load and the breakers that the fallback goes by."""
        now, conduct = self.clock(), self._fallback.conduct(request.model_id)
        held = []
        for leg in placement.legs:
            guard = self._load.acquire(
                leg.target, prefill_tokens=leg.uncached_tokens, decode_blocks=leg.prompt_blocks, now=now
            )
            breaker = leg.target.worker.breaker
            permit = breaker.acquire(now) or Permit(breaker, -1)
            held.append(LegLease(conduct, leg, permit, guard, fingerprint=request.fingerprint))
        return LocalLease(self._fallback, placement, tuple(held), request.model_id, "")

    def _lost(self) -> None:
        if self._link is not None:
            log.warning("routing process unavailable: this process decides by least load", in_flight=len(self._leases))
        self._link = None
        self._joined.clear()
        self._stalled = False
        undecided, self._undecided = self._undecided, {}
        for asked in undecided.values():
            _away(asked.future)
        self._explanations.lost()


def _refusal(message: Refused) -> RouterError:
    if message.code is ErrorCode.INTERNAL_ERROR:
        return InternalError(message.message)
    kind = QueueFull if message.code is ErrorCode.QUEUE_FULL else QueueTimeout
    return kind(message.message, message.retry_after)


def _away(future: asyncio.Future[RemoteLease | None]) -> None:
    if not future.done():
        future.set_exception(_Away())
