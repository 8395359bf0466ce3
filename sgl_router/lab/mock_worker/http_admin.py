"""/mock/*: what an engine does not have. State for assertions, and the faults of a worker in another process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from sgl_router.lab.mock_worker.faults import Fault
from sgl_router.lab.mock_worker.generation import field
from sgl_router.lab.mock_worker.http_generate import read_object, refusal_response
from sgl_router.lab.mock_worker.record import Outcome
from sgl_router.lab.mock_worker.refusal import Refusal, invalid

if TYPE_CHECKING:
    from sgl_router.lab.mock_worker.worker import MockWorker

_COUNTED_STREAM_FAULTS = ("drop", "duplicate", "corrupt", "reorder", "replay_drop", "replay_corrupt", "replay_no_end")


class AdminRoutes:
    """Handlers of /mock/state, /mock/faults, /mock/events, /mock/refuse and /mock/restart."""

    def __init__(self, worker: MockWorker) -> None:
        self._worker = worker
        self._later: set[asyncio.Task[None]] = set()

    def routes(self) -> list[web.RouteDef]:
        """What to mount."""
        return [
            web.get("/mock/state", self._state),
            web.get("/mock/faults", self._faults),
            web.post("/mock/faults", self._add_fault),
            web.delete("/mock/faults", self._clear_faults),
            web.post("/mock/events", self._events),
            web.post("/mock/refuse", self._refuse),
            web.post("/mock/restart", self._restart),
        ]

    def cancel(self) -> None:
        """Forget what was announced to happen later."""
        for task in self._later:
            task.cancel()

    async def _state(self, request: web.Request) -> web.Response:
        worker = self._worker
        ranks = [
            {
                "dp_rank": engine.rank,
                "cached_tokens": engine.cache.device_tokens,
                "host_tokens": engine.cache.host_tokens,
                "idle": engine.model.idle,
                "next_sequence": None if engine.publisher is None else engine.publisher.next_sequence,
                "subscribers": 0 if engine.publisher is None else engine.publisher.subscribers,
            }
            for engine in worker.engines
        ]
        outcomes = {outcome.value: worker.log.count(outcome) for outcome in Outcome}
        return web.json_response(
            {
                "incarnation": worker.incarnation,
                "requests": worker.log.total,
                "outcomes": outcomes,
                "ranks": ranks,
            }
        )

    async def _faults(self, request: web.Request) -> web.Response:
        return web.json_response({"faults": [msgspec.to_builtins(fault) for fault in self._worker.faults.active()]})

    async def _add_fault(self, request: web.Request) -> web.Response:
        try:
            fault = msgspec.convert(await read_object(request), Fault)
        except Refusal as refusal:
            return refusal_response(refusal, openai=True)
        except msgspec.ValidationError as error:
            return refusal_response(invalid(str(error)), openai=True)
        self._worker.faults.add(fault)
        return web.json_response(msgspec.to_builtins(fault))

    async def _clear_faults(self, request: web.Request) -> web.Response:
        self._worker.faults.clear()
        for publisher in self._worker.publishers:
            publisher.clear_faults()
        return web.json_response({"faults": []})

    async def _events(self, request: web.Request) -> web.Response:
        """{"dp_rank": 0, "drop": 2, "paused": true, ...}: faults of one rank's event stream."""
        try:
            body = await read_object(request)
            self._script_events(body)
        except Refusal as refusal:
            return refusal_response(refusal, openai=True)
        return web.json_response({})

    def _script_events(self, body: dict[str, Any]) -> None:
        rank = field(body, "dp_rank", int, 0)
        unknown = set(body) - {"dp_rank", "paused", *_COUNTED_STREAM_FAULTS}
        if unknown:
            raise invalid(f"unknown fields: {', '.join(sorted(unknown))}")
        if not 0 <= rank < len(self._worker.publishers):
            raise invalid(f"no event stream of dp_rank {rank}")
        publisher = self._worker.publishers[rank]
        for name in _COUNTED_STREAM_FAULTS:
            setattr(publisher.faults, name, field(body, name, int, getattr(publisher.faults, name)))
        paused = field(body, "paused", bool)
        if paused is not None:
            (publisher.pause if paused else publisher.resume)()

    async def _refuse(self, request: web.Request) -> web.Response:
        """{"secs": 1.5}: close the port after answering, and open it again later (without secs: never)."""
        try:
            body = await read_object(request)
            secs = field(body, "secs", (int, float))
        except Refusal as refusal:
            return refusal_response(refusal, openai=True)
        self._do_later(lambda: self._refuse_for(secs))
        return web.json_response({})

    async def _restart(self, request: web.Request) -> web.Response:
        """Restart in place after answering."""
        self._do_later(self._worker.restart_in_place)
        return web.json_response({})

    async def _refuse_for(self, secs: float | None) -> None:
        self._worker.refuse()
        if secs is not None:
            await asyncio.sleep(secs)
            await self._worker.accept()

    def _do_later(self, action: Callable[[], Awaitable[None]]) -> None:
        async def later() -> None:
            await asyncio.sleep(0.05)  # the answer leaves first: what follows resets its connection
            await action()

        task = asyncio.ensure_future(later())
        self._later.add(task)
        task.add_done_callback(self._later.discard)
