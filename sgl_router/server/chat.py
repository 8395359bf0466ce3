"""`POST /v1/chat/completions`: body in, facts, decision, relay, release."""

from __future__ import annotations

import asyncio
import time
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
from sgl_router.workers import BreakerState

from .body import parse_chat
from .envelope import error_event, error_response
from .facts import gather_facts

if TYPE_CHECKING:
    from sgl_router.kv_events import Expectation
    from sgl_router.policies import Facts, LoadGuard, RouteDecision
    from sgl_router.workers import Permit, Worker

    from .inbound import Inbound
    from .services import Model, Services

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
        facts = await gather_facts(services, model, adapter, chat)
        await _Dispatch(services, inbound, out, record, relayed).run(model, facts)
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
    """Sends one request to the worker the policy chooses; to the next one where no connection can be made."""

    def __init__(
        self, services: Services, inbound: Inbound, out: Outbound, record: RequestRecord, relayed: Relayed
    ) -> None:
        self._services = services
        self._inbound = inbound
        self._out = out
        self._record = record
        self._relayed = relayed

    async def run(self, model: Model, facts: Facts) -> None:
        services, record = self._services, self._record
        tried: set[Worker] = set()
        failure: RouterError | None = None
        for _ in range(MAX_ATTEMPTS):
            chosen = self._choose(model, facts, tried)
            if chosen is None:
                break
            decision, permit = chosen
            record.decided(decision)
            self._count_decision(model, decision)
            worker = decision.target.worker
            guard = services.load.acquire(
                decision.target,
                prefill_tokens=max((decision.prompt_tokens or 0) - decision.matched_tokens, 0),
                decode_blocks=-(-(decision.prompt_tokens or 0) // max(decision.page_size, 1)),
                now=time.monotonic(),
            )
            expectation = self._expect(decision, facts)
            try:
                with guard:
                    await self._send(decision, permit, guard, expectation)
                return
            except ConnectFailed as error:
                tried.add(worker)
                failure = error
            finally:
                if expectation is not None and record.outcome is not Outcome.COMPLETED:
                    expectation.end()
                permit.release(time.monotonic())  # settled already, unless the client went away
                worker.stats.count(record.outcome.value)
        raise failure or NoHealthyWorkers(f"no healthy worker serves model {model.id!r} at the moment", "model")

    def _choose(self, model: Model, facts: Facts, tried: set[Worker]) -> tuple[RouteDecision, Permit] | None:
        now = time.monotonic()
        candidates = self._services.registry.candidates(model.id, now)
        while True:
            candidates = [target for target in candidates if target.worker not in tried] if tried else candidates
            if not candidates:
                return None
            decision = model.policy.select(candidates, facts)
            permit = decision.target.worker.breaker.acquire(now)
            if permit is not None:
                return decision, permit
            # Half-open, and its one probe was taken between the filter and here.
            tried = tried | {decision.target.worker}

    def _count_decision(self, model: Model, decision: RouteDecision) -> None:
        metrics = self._services.metrics
        if model.policy.needs_prompt:
            metrics.decisions.labels(model.id, decision.reason.value).inc()
            metrics.overlap.labels(model.id).observe(decision.matched_blocks)

    def _expect(self, decision: RouteDecision, facts: Facts) -> Expectation | None:
        if facts.ids is None or facts.namespace is None or not self._services.config.kv_events.expect_ttl_secs:
            return None
        return self._services.index.expect(decision.target, facts.ids, facts.namespace)

    async def _send(
        self, decision: RouteDecision, permit: Permit, guard: LoadGuard, expectation: Expectation | None
    ) -> None:
        """One attempt. Leaves `record.outcome` saying how it ended and the permit settled."""
        services, record, inbound = self._services, self._record, self._inbound
        proxy, worker = services.config.proxy, decision.target.worker
        record.outcome = Outcome.CLIENT_GONE  # what it is if this task is cancelled from outside
        # One limit for the answer, also where a stale connection had to be replaced; connecting has its own.
        answer_by = time.monotonic() + proxy.request_timeout_secs
        try:
            with Deadline() as deadline:
                guard.on_expire = lambda: deadline.fire(self._stale())
                exchange = await services.pool.open(
                    worker.url,
                    b"POST",
                    inbound.path.encode("ascii"),
                    self._headers(decision),
                    inbound.body,
                    connecting=lambda: deadline.arm(
                        proxy.connect_timeout_secs,
                        lambda: ConnectFailed(f"no connection to the worker within {proxy.connect_timeout_secs:g} s"),
                    ),
                    sent=lambda: deadline.arm(
                        answer_by - time.monotonic(),
                        lambda: UpstreamTimeout(
                            f"the worker did not answer within {proxy.request_timeout_secs:g} s"
                        ),
                    ),
                )
                with exchange:
                    await relay(
                        exchange,
                        self._out,
                        self._relayed,
                        deadline=deadline,
                        idle_secs=proxy.stream_idle_timeout_secs,
                        added_headers=_decision_headers(decision),
                        first_byte=lambda: self._first_byte(guard, permit, expectation, exchange.status),
                    )
                self._settle(permit, exchange.status)
                self._reconcile(decision)
        except (UpstreamUnreachable, UpstreamBodyIncomplete, UpstreamTimeout) as error:
            record.outcome = (
                Outcome.TIMEOUT
                if isinstance(error, UpstreamTimeout)
                else Outcome.INCOMPLETE
                if isinstance(error, UpstreamBodyIncomplete)
                else Outcome.UNREACHABLE
            )
            self._blame(permit, worker)
            raise
        except StaleRequestExpired:
            record.outcome = Outcome.EXPIRED
            raise
        except ClientGone:
            raise
        except Exception:
            record.outcome = Outcome.INTERNAL
            raise

    def _first_byte(
        self, guard: LoadGuard, permit: Permit, expectation: Expectation | None, status: int
    ) -> None:
        guard.first_byte()
        if expectation is not None:
            expectation.first_byte()
        self._record.first_byte()
        # A probe's good first byte closes the circuit: waiting for the end of a long stream would leave a healed
        # worker on one request. In the closed state success is told at the end, so that a worker that breaks every
        # stream half way still opens it.
        if status < 400 and guard.target.worker.breaker.state is BreakerState.HALF_OPEN:
            permit.success(time.monotonic())

    def _settle(self, permit: Permit, status: int) -> None:
        now, record = time.monotonic(), self._record
        if status in (429, 503):
            record.outcome = Outcome.BACK_PRESSURE
            permit.release(now)
        elif status >= 500:
            record.outcome = Outcome.WORKER_ERROR
            permit.failure(now)
        else:
            record.outcome = Outcome.CLIENT_ERROR if status >= 400 else Outcome.COMPLETED
            permit.success(now)

    def _reconcile(self, decision: RouteDecision) -> None:
        """Hold the worker's own count of cached tokens, where it reports one, against what was predicted."""
        if decision.unmatched is not None or self._record.outcome is not Outcome.COMPLETED:
            return
        reported = self._relayed.usage.cached_tokens()
        self._record.cached_tokens = reported
        if reported is not None:
            self._services.index.reported(
                decision.target, decision.matched_tokens, reported, decision.epoch
            )

    def _blame(self, permit: Permit, worker: Worker) -> None:
        now = time.monotonic()
        if not permit.settled:
            permit.failure(now)
        elif (again := worker.breaker.acquire(now)) is not None:  # praised at its first byte, then it broke off
            again.failure(now)

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
