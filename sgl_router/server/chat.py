"""`POST /v1/chat/completions`: body in, facts, decision, relay, release."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from sgl_router.errors import (
    ConnectFailed,
    InternalError,
    NoHealthyWorkers,
    RouterError,
    StaleRequestExpired,
    UpstreamBodyIncomplete,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from sgl_router.observability import Outcome, RequestRecord
from sgl_router.proxy import RANK_HEADER, ClientGone, Deadline, Headers, Outbound, Relayed, forward_headers, relay

from .ask import make_ask
from .body import parse_chat
from .envelope import error_event, error_response

if TYPE_CHECKING:
    from sgl_router.policies import RouteDecision
    from sgl_router.routing import Ask, Lease
    from sgl_router.workers import Worker

    from .inbound import Inbound
    from .services import Services

__all__ = ["serve_chat"]

log = structlog.get_logger(__name__)

# A worker that cannot even be connected to has seen nothing of the request, so another may be asked.
MAX_ATTEMPTS = 3
ERROR_EVENT_SECS = 5.0


async def serve_chat(services: Services, inbound: Inbound, out: Outbound) -> None:
    """Answer one request, whatever happens. Raises only ClientGone and CancelledError: nobody is there to answer."""
    record = RequestRecord(inbound.request_id)
    relayed = Relayed()
    try:
        chat = parse_chat(inbound.body)
        model, adapter = services.model(chat["model"])
        record.model_id = model.id
        ask = await make_ask(model, adapter, chat)
        await _Dispatch(services, inbound, out, record, relayed).run(ask)
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
    services.metrics.errors.labels(error.code.value).inc()
    if isinstance(error, NoHealthyWorkers) or (record.decision is None and not isinstance(error, InternalError)):
        record.outcome = Outcome.REJECTED
    if not out.started:
        status, headers, body = error_response(error)
        record.status = status
        await out.send(status, headers + _decision_headers(record.decision), body)
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


class _Dispatch:
    """Sends one request to the worker that is chosen for it; to the next one where no connection can be made."""

    __slots__ = ("_inbound", "_out", "_record", "_relayed", "_services")

    def __init__(
        self, services: Services, inbound: Inbound, out: Outbound, record: RequestRecord, relayed: Relayed
    ) -> None:
        self._services = services
        self._inbound = inbound
        self._out = out
        self._record = record
        self._relayed = relayed

    async def run(self, ask: Ask) -> None:
        record = self._record
        tried: set[Worker] = set()
        failure: RouterError | None = None
        for _ in range(MAX_ATTEMPTS):
            lease = await self._services.routing.choose(ask, tried)
            if lease is None:
                break
            record.decided(lease.decision)
            try:
                await self._send(lease)
                return
            except ConnectFailed as error:
                tried.add(lease.decision.target.worker)
                failure = error
            finally:
                lease.end(record.outcome)  # over already, unless something went wrong
        raise failure or NoHealthyWorkers(f"no healthy worker serves model {ask.model_id!r} at the moment", "model")

    async def _send(self, lease: Lease) -> None:
        """One attempt. Leaves `record.outcome` saying how it ended."""
        services, record, inbound, decision = self._services, self._record, self._inbound, lease.decision
        proxy = services.config.proxy
        record.outcome = Outcome.CLIENT_GONE  # what it is if this task is cancelled from outside
        try:
            with Deadline() as deadline:
                lease.on_expire = lambda: deadline.fire(self._stale())
                exchange = await services.pool.open(
                    decision.target.worker.url,
                    b"POST",
                    inbound.path.encode("ascii"),
                    self._headers(decision),
                    inbound.body,
                    deadline=deadline,
                    connect_secs=proxy.connect_timeout_secs,
                    answer_secs=proxy.request_timeout_secs,
                )
                with exchange:
                    await relay(
                        exchange,
                        self._out,
                        self._relayed,
                        deadline=deadline,
                        idle_secs=proxy.stream_idle_timeout_secs,
                        added_headers=_decision_headers(decision),
                        first_byte=lambda: self._first_byte(lease, exchange.status),
                    )
                self._completed(lease, exchange.status)
        except UpstreamTimeout:
            record.outcome = Outcome.TIMEOUT
            raise
        except UpstreamBodyIncomplete:
            record.outcome = Outcome.INCOMPLETE
            raise
        except UpstreamUnreachable:
            record.outcome = Outcome.UNREACHABLE
            raise
        except StaleRequestExpired:
            record.outcome = Outcome.EXPIRED
            raise
        except ClientGone:
            raise
        except Exception:
            record.outcome = Outcome.INTERNAL
            raise

    def _first_byte(self, lease: Lease, status: int) -> None:
        lease.first_byte(status)
        self._record.first_byte()

    def _completed(self, lease: Lease, status: int) -> None:
        record = self._record
        if status < 400:
            record.outcome = Outcome.COMPLETED
            record.cached_tokens = self._relayed.usage.cached_tokens()
        elif status in (429, 503):
            record.outcome = Outcome.BACK_PRESSURE
        elif status >= 500:
            record.outcome = Outcome.WORKER_ERROR
        else:
            record.outcome = Outcome.CLIENT_ERROR
        lease.end(record.outcome, record.cached_tokens)

    def _stale(self) -> StaleRequestExpired:
        outcome = "stream_closed" if self._out.started else "answered_504"
        self._services.metrics.stale.labels(outcome).inc()
        bound = self._services.config.active_load.stale_request_timeout_secs
        return StaleRequestExpired(f"the request was older than {bound:g} s and has been given up")

    def _headers(self, decision: RouteDecision) -> Headers:
        headers = forward_headers(self._inbound.headers)
        headers.append((b"x-request-id", self._inbound.request_id.encode("ascii")))
        worker, key = decision.target.worker, self._services.worker_api_key
        if worker.dp_size > 1:
            headers.append((RANK_HEADER, b"%d" % decision.target.dp_rank))
        if key is not None and all(name != b"authorization" for name, _ in headers):
            headers.append((b"authorization", b"Bearer " + key.encode()))
        return headers


def _decision_headers(decision: RouteDecision | None) -> Headers:
    """Which worker was chosen (an opaque id) and why: blocks of the prompt it held, of how many a hit could cover."""
    if decision is None:
        return []
    why = decision.reason.value
    text = f"reason={why}; matched={decision.matched_blocks}; total={decision.total_blocks}; page={decision.page_size}"
    if decision.expected_blocks > decision.matched_blocks:
        text += f"; expected={decision.expected_blocks}"
    if decision.unmatched is not None:
        text += f"; unmatched={decision.unmatched.value}"
    if decision.target.worker.dp_size > 1:
        text += f"; dp_rank={decision.target.dp_rank}"
    return [
        (b"x-sgl-router-worker", decision.target.worker.id.encode("ascii")),
        (b"x-sgl-router-decision", text.encode("ascii")),
    ]
