"""One data process as the routing process sees it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import structlog

from sgl_router.errors import InternalError, RouterError
from sgl_router.kv_events import Namespace
from sgl_router.outcome import Outcome
from sgl_router.placement import DecisionReason, Leg, Unmatched
from sgl_router.routing import RouteRequest
from sgl_router.routing.local import Later
from sgl_router.routing.local_lease import LegLease, LocalLease
from sgl_router.routing.remote.keys import keyed_prompt
from sgl_router.routing.remote.link import Link
from sgl_router.routing.remote.messages import (
    Choose,
    Chosen,
    Counts,
    Declare,
    End,
    Expired,
    Explain,
    Explained,
    FirstByte,
    Heard,
    Held,
    Hello,
    NobodyLeft,
    Question,
    Refused,
    ToRouting,
    to_routing,
)
from sgl_router.workers import Permit

if TYPE_CHECKING:
    from sgl_router.routing.remote.server import RoutingServer
    from sgl_router.workers import Worker

__all__ = ["DataSession"]

log = structlog.get_logger(__name__)

_MAX_UNDECIDED = 1_024


class DataSession:
    """Its leases end when its connection does: either it died, or it will declare them on the next one."""

    def __init__(self, server: RoutingServer) -> None:
        self._server = server
        self.link: Link[ToRouting] = Link(to_routing, self._received, self._lost)
        self._process: int | None = None
        self._leases: dict[int, LocalLease] = {}
        self._undecided: dict[int, asyncio.Task[Any]] = {}  # explanations too
        self._held: set[int] = set()  # of them, those that wait for a worker: the queue bounds these
        self._full = False
        self._waiting: dict[int, Declare] = {}

    def worker_added(self, worker: Worker) -> None:
        """Leases declared before the worker was known are charged to it now."""
        for declared in [one for one in self._waiting.values() if one.url == worker.url]:
            del self._waiting[declared.seq]
            self._declare(declared)

    # --- messages -----------------------------------------------------------------------------------------------

    def _received(self, message: ToRouting) -> None:
        kind = type(message)
        if self._process is None and kind is not Hello:
            log.error("peer process did not introduce itself, disconnecting it")
            self.link.abort()
        elif isinstance(message, Choose):
            self._choose(message)
        elif isinstance(message, Explain):
            self._explain(message)
        elif isinstance(message, FirstByte):
            self._first_byte(message)
        elif isinstance(message, End):
            self._end(message)
        elif isinstance(message, Declare):
            self._declare(message)
        elif isinstance(message, Heard):
            for generation in message.generations:
                if (worker := self._server.by_generation.get(generation)) is not None:
                    worker.heard = True
        elif isinstance(message, Counts):
            self._server.merge(message.delta)
        else:
            self._process = message.process
            log.info("data process connected", data_process=message.process, data_pid=message.pid)
            self._server.joined(self)

    def _used_before(self, seq: int) -> bool:
        if seq not in self._undecided and seq not in self._leases:
            return False
        log.error("data process used a request number twice, disconnecting it", data_process=self._process)
        self.link.abort()
        return True

    def _choose(self, message: Choose) -> None:
        if self._used_before(message.seq):
            return
        request = _asked(message)
        workers = self._server.by_generation
        tried = {workers[generation] for generation in message.tried if generation in workers}
        try:
            found = self._server.routing.choose_now(request, tried)
        except Exception:
            log.exception("decision failed", data_process=self._process)
            self.link.send(NobodyLeft(message.seq))
            return
        if not isinstance(found, Later):  # most decisions take no turn of the loop, and so no task
            self._decided(message.seq, found)
            return
        deciding = asyncio.get_running_loop().create_task(self._decide(message.seq, request, tried, found))
        self._undecided[message.seq] = deciding
        deciding.add_done_callback(lambda task: self._over(message.seq, task))
        self._pace()

    def _hold(self, seq: int) -> None:
        self.link.send(Held(seq))
        self._held.add(seq)
        self._pace()

    def _pace(self) -> None:
        """Read no more while too much is being looked up. Who is held does not count: it is the ends of other requests,
        which are still to be read, that make room for them."""
        full = len(self._undecided) - len(self._held) >= _MAX_UNDECIDED
        if full is not self._full:
            self._full = full
            self.link.pause(full)

    async def _decide(self, seq: int, request: RouteRequest, tried: set[Worker], later: Later) -> None:
        lease: LocalLease | None = None
        refused: RouterError | None = None
        try:
            lease = await self._server.routing.choose_later(request, tried, later, lambda: self._hold(seq))
        except RouterError as error:
            refused = error
        except Exception:
            log.exception("decision failed", data_process=self._process)
        if refused is not None:
            self.link.send(Refused(seq, refused.code, refused.message, refused.retry_after or 0))
        else:
            self._decided(seq, lease)

    def _over(self, seq: int, deciding: asyncio.Task[None]) -> None:
        """Of a task that may have been cancelled before its first step."""
        self._undecided.pop(seq, None)
        self._held.discard(seq)
        self._pace()
        if deciding.cancelled():
            self.link.send(NobodyLeft(seq))  # who gave up hears that somebody answers again

    def _decided(self, seq: int, lease: LocalLease | None) -> None:
        if lease is None:
            self.link.send(NobodyLeft(seq))
            return
        if not self.link.open:
            lease.end(Outcome.CLIENT_GONE)
            return
        self._leases[seq] = lease
        lease.on_expire = lambda: self.link.send(Expired(seq))
        self.link.send(Chosen(seq, lease.placement))

    def _explain(self, message: Explain) -> None:
        if self._used_before(message.seq):
            return
        explaining = asyncio.get_running_loop().create_task(self._server.routing.explain(_asked(message)))
        self._undecided[message.seq] = explaining
        self._pace()
        explaining.add_done_callback(lambda task: self._explained(message, task))

    def _explained(self, message: Explain, explaining: asyncio.Task[dict[str, Any]]) -> None:
        self._undecided.pop(message.seq, None)
        self._pace()
        if explaining.cancelled():
            return  # nobody waits for it any more
        failure = explaining.exception()
        if failure is None:
            self.link.send(Explained(message.seq, explaining.result()))
            return
        log.error("explanation failed", data_process=self._process, request_id=message.request_id, exc_info=failure)
        told = InternalError("the router failed to handle this request")
        self.link.send(Refused(message.seq, told.code, told.message, 0))

    def _first_byte(self, message: FirstByte) -> None:
        lease = self._leases.get(message.seq)
        if lease is not None:
            lease.first_byte(message.status)
        elif (declared := self._waiting.get(message.seq)) is not None:
            declared.prefill_tokens, declared.computed = 0, True

    def _end(self, message: End) -> None:
        lease = self._leases.pop(message.seq, None)
        if lease is not None:
            lease.end(
                message.outcome,
                message.cached_tokens,
                message.output_tokens,
                status=message.status,
                retry_after_secs=message.retry_after_secs,
                unrenderable=message.unrenderable,
            )
        elif (deciding := self._undecided.get(message.seq)) is not None:
            deciding.cancel()  # it may be waiting for a worker: its place is somebody else's now
        else:
            self._waiting.pop(message.seq, None)

    def _declare(self, message: Declare) -> None:
        server = self._server
        worker = server.registry.get(message.url)
        if worker is None:
            self._waiting[message.seq] = message
            return
        if worker.model_id != message.model_id or not 0 <= message.dp_rank < worker.dp_size:
            return  # another server by now: the request cannot be on it
        now = server.clock()
        target = worker.targets[message.dp_rank]
        guard = server.load.adopt(
            target,
            prefill_tokens=message.prefill_tokens,
            decode_blocks=message.decode_blocks,
            now=now,
            streamed=message.streamed,
            computed=message.computed,
        )
        leg = Leg(
            target,
            DecisionReason.ROUTING_UNAVAILABLE,
            candidates=1,
            min_load=0,
            max_load=0,
            unmatched=Unmatched.NOT_ASKED,
        )
        # Where the breaker would not have let it go, its end tells the breaker nothing.
        permit = worker.breaker.acquire(now) or Permit(worker.breaker, -1)
        routing, model_id = server.routing, worker.model_id
        held = LegLease(routing.conduct(model_id), leg, permit, guard, fingerprint=message.fingerprint)
        lease = routing.hold(held, model_id, "")
        lease.on_expire = lambda: self.link.send(Expired(message.seq))
        self._leases[message.seq] = lease

    def _lost(self) -> None:
        self._server.left(self)
        leases, self._leases = self._leases, {}
        self._waiting.clear()
        for deciding in list(self._undecided.values()):
            deciding.cancel()
        for lease in leases.values():
            lease.end(Outcome.CLIENT_GONE)
        if self._process is not None:
            log.info("data process disconnected", data_process=self._process, leases_ended=len(leases))


def _asked(message: Question) -> RouteRequest:
    tokens, namespace = message.tokens, message.namespace
    choose = message if isinstance(message, Choose) else None
    return RouteRequest(
        model_id=message.model_id,
        request_id=message.request_id,
        prompt=None if tokens is None else keyed_prompt(tokens, message.keys),
        namespace=None if namespace is None else Namespace(*namespace),
        unmatched=message.unmatched,
        session=message.session,
        streamed=choose.streamed if choose is not None else True,
        priority=choose.priority if choose is not None else 0,
        fingerprint=choose.fingerprint if choose is not None else None,
    )
