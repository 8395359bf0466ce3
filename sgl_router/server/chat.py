"""`POST /v1/chat/completions`: body in, facts, decision, relay, release."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import structlog
import xxhash

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
from sgl_router.observability import Outcome, RequestRecord
from sgl_router.observability.outcome import FAILURES
from sgl_router.placement import Unmatched
from sgl_router.proxy import RANK_HEADER, ClientGone, Deadline, Outbound, Relayed, Said, header_lines, relay
from sgl_router.proxy.retry_after import retry_after_secs

from .ask import is_unrenderable, make_ask
from .body import read_chat
from .envelope import error_event, error_response

if TYPE_CHECKING:
    from sgl_router.routing import Ask, Lease
    from sgl_router.workers import Target, Worker

    from .inbound import Inbound
    from .services import Services

__all__ = ["serve_chat"]

log = structlog.get_logger(__name__)

# A worker that cannot even be connected to has seen nothing of the request, so another may be asked.
MAX_ATTEMPTS = 3
ERROR_EVENT_SECS = 5.0
# How a worker did, by what its answer ended with; anything else is the router's own failure.
_OUTCOMES: dict[type[Exception], Outcome] = {
    UpstreamTimeout: Outcome.TIMEOUT,
    UpstreamBodyIncomplete: Outcome.INCOMPLETE,
    UpstreamUnreachable: Outcome.NO_RESPONSE,
    StaleRequestExpired: Outcome.EXPIRED,
    Overloaded: Outcome.REJECTED,
}


async def serve_chat(services: Services, inbound: Inbound, out: Outbound) -> None:
    """Answer one request, whatever happens. Raises only ClientGone and CancelledError: nobody is there to answer."""
    record = RequestRecord(inbound.request_id)
    relayed = Relayed()
    try:
        chat = await read_chat(inbound.body)
        model, adapter = services.model(chat["model"])
        record.model_id = model.id
        ask = await make_ask(model, adapter, chat, inbound.headers, inbound.request_id)
        ask.fingerprint = xxhash.xxh3_64_intdigest(inbound.body)
        del chat  # a large one is as large as its body, and the response may take minutes
        await _dispatch(services, inbound, out, record, relayed, ask)
    except RouterError as error:
        await _answer_error(out, record, relayed, error, services)
    except (ClientGone, asyncio.CancelledError):
        record.outcome = Outcome.CLIENT_GONE
        raise
    except Exception:
        log.exception("request failed", request_id=inbound.request_id)
        record.outcome = Outcome.INTERNAL
        failure = InternalError("the router failed on this request; its log has the details under the request id")
        await _answer_error(out, record, relayed, failure, services)
    finally:
        record.status = record.status or relayed.status or None
        record.streamed = relayed.streamed
        record.bytes_out = relayed.bytes_out
        record.finish(services.metrics)


async def _answer_error(
    out: Outbound, record: RequestRecord, relayed: Relayed, error: RouterError, services: Services
) -> None:
    record.error = error
    # Their frames hold the record, and the body: a cycle of megabytes, for a collector that seldom comes by.
    error.__traceback__ = error.__context__ = None
    services.metrics.errors.labels(error.code.value).inc()
    if isinstance(error, NoHealthyWorkers) or (record.placement is None and not isinstance(error, InternalError)):
        record.outcome = Outcome.REJECTED
    if not out.started:
        status, headers, body = error_response(error)
        record.status = status
        decided = record.placement.header_lines() if record.placement is not None else b""
        await out.send(status, header_lines(headers) + decided, body)
    elif relayed.streamed:
        try:
            await asyncio.wait_for(_end_stream(out, error), ERROR_EVENT_SECS)
        except asyncio.TimeoutError:
            out.abort()  # nobody reads; no guard and no deadline watches this request any more
    else:
        out.abort()  # part of a body is out: only a broken connection still says that it is not whole


async def _end_stream(out: Outbound, error: RouterError) -> None:
    await out.write(error_event(error))
    await out.end()


async def _dispatch(
    services: Services, inbound: Inbound, out: Outbound, record: RequestRecord, relayed: Relayed, ask: Ask
) -> None:
    """Send a request to the worker that is chosen for it; to the next one where no connection can be made."""
    tried: set[Worker] = set()
    failure: RouterError | None = None
    for _ in range(MAX_ATTEMPTS):
        lease = await services.routing.choose(ask, tried)
        if lease is None:
            break
        record.decided(lease.placement, lease.waited_secs)
        record.outcome = Outcome.CLIENT_GONE  # what it is if this task is cancelled from outside
        try:
            await _send(services, inbound, out, record, relayed, ask, lease)
            return
        except ConnectFailed as error:
            record.outcome = Outcome.UNREACHABLE
            tried.add(lease.placement.decode.target.worker)
            failure = error
        except ClientGone:
            raise
        except Exception as error:
            record.outcome = _OUTCOMES.get(type(error), Outcome.INTERNAL)
            raise
        finally:
            lease.end(record.outcome)  # over already, unless something went wrong
    raise failure or NoHealthyWorkers(f"no healthy worker serves model {ask.model_id!r} at the moment", "model")


async def _send(
    services: Services,
    inbound: Inbound,
    out: Outbound,
    record: RequestRecord,
    relayed: Relayed,
    ask: Ask,
    lease: Lease,
) -> None:
    """One attempt. Leaves `record.outcome` saying how the worker did, if it returns."""
    placement, proxy = lease.placement, services.config.proxy
    target = placement.decode.target
    with Deadline() as deadline:
        lease.on_expire = lambda: deadline.fire(_stale(services, out))
        exchange = await services.pool.open(
            target.worker.url,
            b"POST",
            inbound.path.encode("ascii"),
            _header_lines(inbound, target, services.worker_api_key),
            inbound.body,
            deadline=deadline,
            connect_secs=proxy.connect_timeout_secs,
            answer_secs=proxy.request_timeout_secs,
        )
        with exchange:
            status = exchange.connection.status
            # Was it the request that this failed of? Where it was not rendered, that is looked into below.
            suspect = status >= 500 and placement.prefill.unmatched is Unmatched.NOT_ASKED
            if not suspect:
                inbound.sent()
            if status < 400:
                exchange.connection.heard_by = target.worker

            def first_byte() -> None:
                lease.first_byte(status)
                record.first_byte()

            await relay(
                exchange,
                out,
                relayed,
                deadline=deadline,
                idle_secs=proxy.stream_idle_timeout_secs,
                added_lines=placement.header_lines(),
                first_byte=first_byte,
            )
    outcome = record.outcome = _outcome(relayed)
    ending = relayed.ending
    if outcome is Outcome.COMPLETED:
        record.cached_tokens = ending.cached_tokens
        lease.end(outcome, ending.cached_tokens, ending.output_tokens if relayed.streamed and ask.costed else None)
    else:
        suspect = suspect and outcome in FAILURES
        lease.end(
            outcome,
            status=relayed.judged_status,
            retry_after_secs=None if relayed.status < 400 else retry_after_secs(exchange.headers, time.time()),
            unrenderable=suspect and await is_unrenderable(services.models[ask.model_id], inbound.body),
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


def _stale(services: Services, out: Outbound) -> StaleRequestExpired:
    services.metrics.stale.labels("stream_closed" if out.started else "answered_504").inc()
    bound = services.config.active_load.stale_request_timeout_secs
    return StaleRequestExpired(f"the request was older than {bound:g} s and has been given up")


def _header_lines(inbound: Inbound, target: Target, key: str | None) -> bytes:
    """What a worker is told of the request: the client's headers, and the router's own."""
    lines = b"%b\r\nx-request-id: %b" % (inbound.forwarded, inbound.request_id.encode("ascii"))
    if target.worker.dp_size > 1:
        lines += b"\r\n%b: %d" % (RANK_HEADER, target.dp_rank)
    if key is not None and b"\r\nauthorization: " not in lines:
        lines += b"\r\nauthorization: Bearer " + key.encode()
    return lines
