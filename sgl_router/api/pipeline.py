"""The life of any request that goes to a worker, as a list of steps.

Guarantees: one response whatever happens; every lease that was taken is ended, once; one record for each request.
Failure modes: a connection that cannot be made sends the request to another worker, since nothing of it was sent; any
other failure ends it. Errors before the response has begun become the envelope; in a stream, its last event; in the
middle of a body, a broken connection.
Why a list: authentication, rate limits and retries are further steps, and no endpoint has to know of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import structlog

from sgl_router.api.exchange import Endpoint, Exchange
from sgl_router.errors import (
    ConnectFailed,
    InternalError,
    NoHealthyWorkers,
    Overloaded,
    RouterError,
    StaleRequestExpired,
    UpstreamBodyIncomplete,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from sgl_router.http import RANK_HEADER, ClientGone, header_lines
from sgl_router.http.envelope import error_event, error_response
from sgl_router.outcome import FAILURES, Outcome
from sgl_router.placement import Unmatched
from sgl_router.upstream import Deadline, Relayed, Said, relay
from sgl_router.upstream.retry_after import retry_after_secs

if TYPE_CHECKING:
    from sgl_router.http import ResponseWriter
    from sgl_router.http.request import Request
    from sgl_router.http.routes import Serve
    from sgl_router.routing import Lease
    from sgl_router.services import Services
    from sgl_router.upstream import UpstreamExchange
    from sgl_router.workers import Target

__all__ = ["STEPS", "pipeline"]

log = structlog.get_logger(__name__)

# A worker that cannot even be connected to has seen nothing of the request, so another may be asked.
MAX_ATTEMPTS = 3
ERROR_EVENT_SECS = 5.0
# How a worker did, by what its response ended with; anything else is the router's own failure.
_OUTCOMES: dict[type[Exception], Outcome] = {
    UpstreamTimeout: Outcome.TIMEOUT,
    UpstreamBodyIncomplete: Outcome.INCOMPLETE,
    UpstreamUnreachable: Outcome.NO_RESPONSE,
    StaleRequestExpired: Outcome.EXPIRED,
    Overloaded: Outcome.REJECTED,
}


def pipeline(endpoint: Endpoint) -> Serve:
    """A route's handler. It raises only ClientGone and CancelledError: then no client is there to be answered."""

    async def serve(services: Services, request: Request, writer: ResponseWriter) -> None:
        exchange = Exchange(endpoint, services, request, writer)
        record = exchange.record
        try:
            for step in STEPS:
                await step(exchange)
        except RouterError as error:
            await _answer_error(exchange, error)
        except (ClientGone, asyncio.CancelledError):
            record.outcome = Outcome.CLIENT_GONE
            raise
        except Exception:
            log.exception("request failed", request_id=request.request_id)
            record.outcome = Outcome.INTERNAL
            failure = InternalError("the router failed on this request; its log has the details under the request id")
            await _answer_error(exchange, failure)
        finally:
            _record(exchange)

    return serve


# --- the steps ------------------------------------------------------------------------------------------------------


async def parse(exchange: Exchange) -> None:
    exchange.body = await exchange.endpoint.read(exchange.request.body)


async def admit(exchange: Exchange) -> None:
    """Is this served here? Raises ModelNotFound."""
    assert exchange.body is not None
    exchange.model, exchange.adapter = exchange.services.model(exchange.body["model"])
    exchange.record.model_id = exchange.model.id


async def prepare(exchange: Exchange) -> None:
    """What the router is asked. The fields are let go: they are as large as the body, and a response takes minutes."""
    body, exchange.body = exchange.body, None
    assert body is not None
    exchange.route_request = await exchange.endpoint.prepare(exchange, body)


async def dispatch(exchange: Exchange) -> None:
    """Place the request and send it; to the next worker where no connection can be made."""
    services, record = exchange.services, exchange.record
    failure: RouterError | None = None
    for _ in range(MAX_ATTEMPTS):
        lease = await services.routing.choose(exchange.route_request, exchange.tried)
        if lease is None:
            break
        record.decided(lease.placement, lease.waited_secs)
        record.outcome = Outcome.CLIENT_GONE  # what it is if this task is cancelled from outside
        try:
            await _attempt(exchange, lease)
            return
        except ConnectFailed as error:
            record.outcome = Outcome.UNREACHABLE
            exchange.tried.add(lease.placement.decode.target.worker)
            failure = error
        except ClientGone:
            raise
        except Exception as error:
            record.outcome = _OUTCOMES.get(type(error), Outcome.INTERNAL)
            raise
        finally:
            lease.end(record.outcome)  # over already, unless something went wrong
    model_id = exchange.model.id
    raise failure or NoHealthyWorkers(f"no healthy worker serves model {model_id!r} at the moment", "model")


STEPS: tuple[Callable[[Exchange], Awaitable[None]], ...] = (parse, admit, prepare, dispatch)


# --- one attempt ----------------------------------------------------------------------------------------------------


async def _attempt(exchange: Exchange, lease: Lease) -> None:
    """Send, relay, release. Leaves `record.outcome` saying how the worker did, if it returns."""
    services, request, record = exchange.services, exchange.request, exchange.record
    placement, proxy = lease.placement, services.config.proxy
    target = placement.decode.target
    with Deadline() as deadline:
        lease.on_expire = lambda: deadline.fire(_stale(exchange))
        upstream = await services.pool.open(
            target.worker.url,
            b"POST",
            request.path.encode("ascii"),
            _header_lines(request, target, services.worker_api_key),
            request.body,
            deadline=deadline,
            connect_secs=proxy.connect_timeout_secs,
            answer_secs=proxy.request_timeout_secs,
        )
        with upstream:
            status = upstream.status
            # Was it the request that this failed of? Where it was not rendered, that is looked into at the end.
            suspect = status >= 500 and placement.prefill.unmatched is Unmatched.NOT_ASKED
            if not suspect:
                request.sent()
            if status < 400:
                upstream.connection.heard_by = target.worker

            def first_byte() -> None:
                lease.first_byte(status)
                record.first_byte()

            await relay(
                upstream,
                exchange.writer,
                exchange.relayed,
                deadline=deadline,
                idle_secs=proxy.stream_idle_timeout_secs,
                added_lines=placement.header_lines(),
                first_byte=first_byte,
            )
    await _release(exchange, lease, upstream, suspect)


async def _release(exchange: Exchange, lease: Lease, upstream: UpstreamExchange, suspect: bool) -> None:
    """The response is whole: what it says of the worker ends the lease."""
    relayed, record = exchange.relayed, exchange.record
    outcome = record.outcome = _outcome(relayed)
    ending = relayed.ending
    if outcome is Outcome.COMPLETED:
        record.cached_tokens = ending.cached_tokens
        wanted = relayed.streamed and exchange.route_request.wants_usage
        lease.end(outcome, ending.cached_tokens, ending.output_tokens if wanted else None)
        return
    suspect = suspect and outcome in FAILURES
    lease.end(
        outcome,
        status=relayed.judged_status,
        retry_after_secs=None if relayed.status < 400 else retry_after_secs(upstream.headers, time.time()),
        unrenderable=suspect and await exchange.endpoint.is_unrenderable(exchange.model, exchange.request.body),
    )


def _outcome(relayed: Relayed) -> Outcome:
    """Of a response that is whole."""
    said, status = relayed.ending.said, relayed.judged_status
    if status in (429, 503):
        return Outcome.BACK_PRESSURE
    if status >= 500:
        return Outcome.ERROR_EVENT if relayed.status < 400 else Outcome.WORKER_ERROR
    if status >= 400:
        return Outcome.CLIENT_ERROR
    if said is Said.GOOD:
        return Outcome.COMPLETED
    return Outcome.ABORTED if said is Said.ABORTED else Outcome.EMPTY


def _stale(exchange: Exchange) -> StaleRequestExpired:
    services = exchange.services
    services.metrics.stale.labels("stream_closed" if exchange.writer.started else "answered_504").inc()
    bound = services.config.active_load.stale_request_timeout_secs
    return StaleRequestExpired(f"the request was older than {bound:g} s and has been given up")


def _header_lines(request: Request, target: Target, key: str | None) -> bytes:
    """What a worker is told of the request: the client's headers, and the router's own."""
    lines = b"%b\r\nx-request-id: %b" % (request.forwarded, request.request_id.encode("ascii"))
    if target.worker.dp_size > 1:
        lines += b"\r\n%b: %d" % (RANK_HEADER, target.dp_rank)
    if key is not None and b"\r\nauthorization: " not in lines:
        lines += b"\r\nauthorization: Bearer " + key.encode()
    return lines


# --- the end --------------------------------------------------------------------------------------------------------


async def _answer_error(exchange: Exchange, error: RouterError) -> None:
    record, relayed, writer = exchange.record, exchange.relayed, exchange.writer
    record.error = error
    # Their frames hold the record, and the body: a cycle of megabytes, for a collector that seldom comes by.
    error.__traceback__ = error.__context__ = None
    exchange.services.metrics.errors.labels(error.code.value).inc()
    if isinstance(error, NoHealthyWorkers) or (record.placement is None and not isinstance(error, InternalError)):
        record.outcome = Outcome.REJECTED
    if not writer.started:
        status, headers, body = error_response(error)
        record.status = status
        decided = record.placement.header_lines() if record.placement is not None else b""
        await writer.send(status, header_lines(headers) + decided, body)
    elif relayed.streamed:
        try:
            await asyncio.wait_for(_end_stream(writer, error), ERROR_EVENT_SECS)
        except asyncio.TimeoutError:
            writer.abort()  # the client does not read; no guard and no deadline watches this request any more
    else:
        writer.abort()  # part of a body is out: only a broken connection still says that it is not whole


async def _end_stream(writer: ResponseWriter, error: RouterError) -> None:
    await writer.write(error_event(error))
    await writer.end()


def _record(exchange: Exchange) -> None:
    record, relayed = exchange.record, exchange.relayed
    record.status = record.status or relayed.status or None
    record.streamed = relayed.streamed
    record.bytes_out = relayed.bytes_out
    record.finish(exchange.services.metrics)
