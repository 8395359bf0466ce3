"""The generating endpoints: parse, pass the faults and the gate, run, answer buffered or streamed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from sgl_router.lab.mock_worker.config import Role
from sgl_router.lab.mock_worker.faults import Fault, FaultKind, FaultScope
from sgl_router.lab.mock_worker.generation import Endpoint, Generation
from sgl_router.lab.mock_worker.http_faults import InjectedFault, commit_before_headers, truncate_body
from sgl_router.lab.mock_worker.listener import reset_connection
from sgl_router.lab.mock_worker.pd import PrefillResult
from sgl_router.lab.mock_worker.rank import RankEngine
from sgl_router.lab.mock_worker.record import Outcome, RequestRecord
from sgl_router.lab.mock_worker.refusal import Refusal, invalid
from sgl_router.lab.mock_worker.replies import DONE, Reply, reply_for, server_sent
from sgl_router.lab.mock_worker.run import GenerationRun, plan_run
from sgl_router.lab.mock_worker.scheduler import FinishReason

if TYPE_CHECKING:
    from sgl_router.lab.mock_worker.worker import MockWorker


class GenerateRoutes:
    """Handlers of /v1/chat/completions, /v1/completions and /generate."""

    def __init__(self, worker: MockWorker) -> None:
        self._worker = worker

    def routes(self) -> list[web.RouteDef]:
        """What to mount."""
        return [web.post(endpoint.value, self._handle) for endpoint in Endpoint]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        worker = self._worker
        endpoint = Endpoint(request.path)
        headers = {name.lower(): value for name, value in request.headers.items()}
        record = worker.log.start(request.path, headers)
        try:
            record.body = await read_object(request, openai=endpoint is not Endpoint.GENERATE)
            fault = worker.faults.take(FaultScope.GENERATE)
            if fault is not None:
                response = await commit_before_headers(fault, request, worker.faults)
                if response is not None:
                    worker.log.end(record, Outcome.FAULTED)
                    return response
            return await self._answer(request, endpoint, record, fault)
        except Refusal as refusal:
            worker.log.end(record, Outcome.REFUSED)
            if refusal.from_scheduler and record.body.get("stream") is True:
                return await self._refuse_in_stream(request, refusal)
            return refusal_response(refusal, openai=endpoint is not Endpoint.GENERATE)
        except asyncio.CancelledError:
            worker.log.end(record, Outcome.ABORTED)
            raise
        except ConnectionError as error:
            worker.log.end(record, Outcome.FAULTED if isinstance(error, InjectedFault) else Outcome.ABORTED)
            return web.Response()  # nothing can be written any more

    async def _answer(
        self, request: web.Request, endpoint: Endpoint, record: RequestRecord, fault: Fault | None
    ) -> web.StreamResponse:
        worker = self._worker
        generation = await worker.parser.parse(endpoint, record.body, record.headers)
        engine = worker.engine_for(generation)
        worker.log.accept(
            record,
            rid=generation.prompts[0].rid,
            dp_rank=engine.rank,
            prompt_tokens=sum(len(prompt.tokens) for prompt in generation.prompts),
        )
        await worker.gate.passage()
        run = await plan_run(
            generation,
            engine,
            worker.config,
            worker.answers,
            worker.tokenizer,
            await self._handed_over(generation),
        )
        reply = reply_for(
            generation,
            worker.tokenizer,
            cache_report=worker.config.enable_cache_report,
            rank=engine.rank if worker.config.dp_size > 1 else None,
        )
        run.start()
        try:
            if generation.stream:
                return await self._stream(request, generation, run, reply, record, fault)
            return await self._buffer(request, generation, run, reply, record, fault)
        except BaseException:
            self._abandon(generation, run)
            raise

    async def _handed_over(self, generation: Generation) -> dict[str, PrefillResult]:
        link = self._worker.decode_link
        if link is None:
            return {}
        wanted = {prompt.rid: prompt.bootstrap for prompt in generation.prompts if prompt.bootstrap is not None}
        results = await asyncio.gather(*(link.receive(bootstrap) for bootstrap in wanted.values()))
        return dict(zip(wanted, results, strict=True))

    def _abandon(self, generation: Generation, run: GenerationRun) -> None:
        # A streaming engine notices a lost client at its next write; a buffering one polls for it.
        delay = 0.0 if generation.stream else self._worker.config.buffered_abort_delay_secs
        if delay:
            asyncio.get_running_loop().call_later(delay, run.abort)
        else:
            run.abort()

    def _complete(self, generation: Generation, run: GenerationRun, record: RequestRecord) -> None:
        record.cached_tokens = sum(item.cached_tokens for item in run.sequences if item.variant == 0)
        record.completion_tokens = sum(len(sequence.tokens) for sequence in run.sequences)
        aborted = any(sequence.finish is FinishReason.ABORT for sequence in run.sequences)
        self._worker.log.end(record, Outcome.ABORTED if aborted else Outcome.COMPLETED)
        server = self._worker.bootstrap_server
        if server is not None and not aborted:
            for sequence in run.sequences:
                if sequence.prompt.bootstrap is not None:
                    server.fill(sequence.prompt.bootstrap.room, PrefillResult(sequence.cached_tokens))

    async def _buffer(
        self,
        request: web.Request,
        generation: Generation,
        run: GenerationRun,
        reply: Reply,
        record: RequestRecord,
        fault: Fault | None,
    ) -> web.StreamResponse:
        async for _ in run.progress():
            pass
        self._complete(generation, run, record)
        body = msgspec.json.encode(reply.buffered(run.sequences))
        if fault is not None and fault.kind is FaultKind.TRUNCATE:
            await truncate_body(request, body)
            raise InjectedFault
        if fault is not None and fault.kind is FaultKind.RESET:
            reset_connection(request.transport)
            raise InjectedFault
        return web.Response(body=body, content_type="application/json")

    async def _stream(
        self,
        request: web.Request,
        generation: Generation,
        run: GenerationRun,
        reply: Reply,
        record: RequestRecord,
        fault: Fault | None,
    ) -> web.StreamResponse:
        stream = EventStream(self._worker, request, fault)
        opened: set[int] = set()
        async for sequence, text in run.progress():
            if sequence.index not in opened:
                opened.add(sequence.index)
                await stream.send(reply.opening(sequence))
            await stream.send(reply.chunk(sequence, text))
            if sequence.finish is not None:
                await stream.send(reply.ending(sequence))
        for event in reply.closing(run.sequences):
            await stream.send(event)
        self._complete(generation, run, record)
        return await stream.end()

    async def _refuse_in_stream(self, request: web.Request, refusal: Refusal) -> web.StreamResponse:
        stream = EventStream(self._worker, request, None)
        await stream.send(refusal.stream_body())
        return await stream.end()


class EventStream:
    """A response of server-sent events; its headers leave with the first event, as the engine's do."""

    def __init__(self, worker: MockWorker, request: web.Request, fault: Fault | None) -> None:
        self._worker = worker
        self._request = request
        self._fault = fault
        self._sent = 0
        self._response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})

    async def send(self, event: Any) -> None:
        """Send one event, None for none; commits the fault when its time has come."""
        if event is None:
            return
        if self._sent:
            await self._worker.stream_gate.passage()
        await self._commit_fault()
        if not self._response.prepared:
            await self._response.prepare(self._request)
        await self._response.write(server_sent(event))
        self._sent += 1

    async def end(self) -> web.StreamResponse:
        """Send the end marker."""
        await self._commit_fault()
        if not self._response.prepared:
            await self._response.prepare(self._request)
        await self._response.write(DONE)
        await self._response.write_eof()
        return self._response

    async def _commit_fault(self) -> None:
        fault = self._fault
        if fault is None or self._sent < fault.after_chunks:
            return
        transport = self._request.transport
        if fault.kind is FaultKind.HANG_STREAM:
            self._fault = None
            await self._worker.faults.until_cleared()
        elif fault.kind is FaultKind.RESET:
            reset_connection(transport)
            raise InjectedFault
        elif fault.kind is FaultKind.TRUNCATE:
            if not self._response.prepared:
                await self._response.prepare(self._request)
            if transport is not None:
                transport.close()
            raise InjectedFault


def refusal_response(refusal: Refusal, *, openai: bool) -> web.Response:
    """A refusal outside of a stream."""
    body = refusal.openai_body() if openai else refusal.native_body()
    return web.json_response(body, status=refusal.status)


async def read_object(request: web.Request, *, openai: bool = True) -> dict[str, Any]:
    """The request's JSON object; raises Refusal for anything else."""
    if openai and request.content_type != "application/json":
        raise invalid("Unsupported Media Type: Only 'application/json' is allowed")
    try:
        body = msgspec.json.decode(await request.read())
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid(f"JSON decode error: {error}") from error
    if not isinstance(body, dict):
        raise invalid("Input should be a valid dictionary")
    return body


def rank_for(generation: Generation, role: Role, engines: list[RankEngine], turn: int) -> RankEngine:
    """The rank that serves a generation: the one asked for, the room's on a prefill worker, or the next."""
    if role is Role.PREFILL and len(engines) > 1 and generation.prompts[0].bootstrap is not None:
        room = generation.prompts[0].bootstrap.room
        implied = room % len(engines)
        if generation.rank is not None and generation.rank != implied:
            raise Refusal(
                f"follow_bootstrap_room conflict: dispatched to dp_rank {generation.rank} but "
                f"bootstrap_room {room} implies dp_rank {implied}.",
                status=500,
                from_scheduler=True,
            )
        return engines[implied]
    if generation.rank is not None:
        return engines[generation.rank]
    return engines[turn % len(engines)]
