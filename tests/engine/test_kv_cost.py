"""The cost policy over real workers: its predictions, its reasons, the loads it goes by, and those who have to wait."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import Serving
from kit.client import Pending
from kit.worker import WorkerClient
from lane.fleet import Fleet
from lane.router import Router
from lane.waiting import until

INITIAL_SPEED = 100_000.0
TERMS = ("compute_ms", "load_back_ms", "queue_ms", "others_ms", "decode_ms", "eviction_ms", "session_ms")
BURST, LEAVING = 32, 6


@pytest.fixture(scope="module")
def _costed(_fleet: Fleet, serving: Serving, log_dir: Path) -> Iterator[Fleet]:
    folder = log_dir / "kv_cost"
    folder.mkdir()
    router = Router(
        folder,
        model=serving.model,
        tokenizer=serving.tokenizer,
        urls=[worker.url for worker in serving.workers],
        api_key=serving.api_key,
        routing={
            "policy": "kv_cost",
            "kv_cost": {"prefill_tokens_per_sec": INITIAL_SPEED},
            "queue": {"enabled": True, "release_below_ms": 0},
        },
        load_reports={"interval_secs": 0.2},
        observability={"decision_cost_sample": 1.0},
    )
    try:
        router.start()
        made = _fleet.behind(router)
        for worker in made.workers:
            made.await_live(worker)
        yield made
        assert router.stop() == 0
    finally:
        router.close()


@pytest.fixture
def costed(_costed: Fleet) -> Fleet:
    """The session's workers, idle and empty, behind a router that goes by costs and lets requests wait."""
    _costed.reset()
    return _costed


def test_requests_sharing_a_prefix_converge(costed: Fleet, numbers: list[str]) -> None:
    prefix = costed.prompts.text("costed prefix", 20 * costed.page + 200)
    routed = []
    for number in range(6):
        question = costed.prompts.text(("costed question", number), 20)
        routed.append(costed.ask([{"role": "user", "content": f"{prefix}\n{question}"}]))
        costed.settle(quiet=0.05)
    seen = "\n".join(map(str, routed))
    assert len({one.worker.url for one in routed}) == 1, seen
    assert all(one.exact for one in routed), seen
    assert all(one.cached >= 20 * costed.page for one in routed[1:]), seen

    for one, entry in zip(routed, reversed(_decisions(costed, len(routed))), strict=True):
        assert (entry["worker"], entry["outcome"]) == (costed.view(one.worker).id, "completed")
        assert entry["prompt_tokens"] == one.prompt
        assert entry["cached_tokens"] == entry["matched_blocks"] * entry["page_size"] == one.cached
        assert entry["first_byte_ms"] > 0
        costs = {_target(cost): cost for cost in entry["costs"]}
        assert {worker for worker, _ in costs} == {costed.view(worker).id for worker in costed.workers}
        for cost in costs.values():
            assert abs(sum(cost[term] for term in TERMS) - cost["total_ms"]) < 0.01, cost
        assert costs[_target(entry)]["total_ms"] == entry["cost_ms"] == min(c["total_ms"] for c in costs.values())
        assert costs.pop(_target(entry))["uncached_tokens"] == one.prompt - one.cached
        assert all(cost["uncached_tokens"] == one.prompt for cost in costs.values())
    cached, total = (sum(values) for values in zip(*((one.cached, one.prompt) for one in routed), strict=True))
    numbers.append(f"kv_cost: {len(routed)} predictions equal, {cached} of {total} prompt tokens from cache")


def test_explain_names_the_holder_and_sends_nothing(costed: Fleet) -> None:
    for worker in costed.workers:
        messages = costed.prompts.user(("explained", costed.workers.index(worker)), 20 * costed.page)
        costed.warm(worker, messages)
        costed.settle()
        blocks = costed.held(worker)
        before = _everything_sent(costed)
        reply = costed.router.call("/internal/explain", {"model": costed.router.model, "messages": messages})
        told = reply.json()
        assert (reply.status, told["policy"], told["would_wait"]) == (200, "kv_cost", False), str(reply)
        decision = told["decision"]
        assert (decision["worker"], decision["reason"]) == (costed.view(worker).id, "cache_hit"), str(reply)
        matched = {_target(one): one["device_blocks"] for one in told["candidates"]}
        assert {worker for worker, _ in matched} == {costed.view(worker).id for worker in costed.workers}
        assert matched.pop(_target(decision)) == min(blocks, (decision["prompt_tokens"] - 1) // costed.page)
        assert not any(matched.values()), str(reply)
        costed.settle()
        assert _everything_sent(costed) == before
        routed = costed.ask(messages)
        assert routed.worker is worker and routed.exact and routed.decision.hit, str(routed)
        costed.settle()


def test_reports_arrive_and_teach_the_workers_speed(costed: Fleet, numbers: list[str]) -> None:
    """The prompts pass the router by: what it learns, it learns from reports."""
    sources = {worker.url: _source(worker) for worker in costed.workers}
    reports = {source: _reports(costed, source, "ok") for source in set(sources.values())}
    learned = []
    for worker in costed.workers:
        before, sent = _prefilled(worker), 0

        def off(worker: WorkerClient = worker, before: tuple[int, int] = before) -> float:
            """How many times faster or slower it is taken to be than it has been since, by its own counts."""
            tokens, micros = (now - then for now, then in zip(_prefilled(worker), before, strict=True))
            ratio = _speed(costed, worker) / (tokens / micros * 1e6)
            return max(ratio, 1 / ratio)

        while sent < 8 or off() > 1.5:
            assert sent < 80, f"{worker.url}: thought to prefill {_speed(costed, worker)} tokens/s, {off()} times off"
            messages = costed.prompts.user(("speed", worker.url, sent), 900)
            worker.chat({"model": costed.router.model, "messages": messages, "max_tokens": 1}, rank=0)
            sent += 1
        assert _speed(costed, worker) != INITIAL_SPEED
        learned.append(f"{_speed(costed, worker):.0f} by {sources[worker.url]}, {off():.2f} times off")

    for source, count in reports.items():
        until(lambda s=source, n=count: _reports(costed, s, "ok") > n, f"reports by {source}")
        assert _reports(costed, source, "bad") == 0
    assert not any(_reports(costed, source, "ok") for source in {"channel", "poll"} - set(reports))
    numbers.append(f"kv_cost: prefill tokens/s learned from reports: {'; '.join(learned)}")


@pytest.mark.own_workers("fills a worker that runs eight requests at most")
def test_load_that_others_bring_is_seen(costed: Fleet) -> None:
    for worker in costed.workers:
        body = {"model": costed.router.model, "stream": True, "max_tokens": 200, "ignore_eos": True}
        url, kept = worker.url + "/v1/chat/completions", []
        try:
            for number in range(16):
                messages = costed.prompts.user(("elsewhere", worker.url, number), 250)
                kept.append(Pending(url, {**body, "messages": messages}, headers=worker.headers()))
            seen = False
            for attempt in range(20):  # between two reports the backlog is taken to drain: it may be gone by the time
                until(lambda w=worker: _backlog(costed, w), "its backlog", every=0.02)
                routed = costed.ask(costed.prompts.user(("beside", worker.url, attempt), 100), max_tokens=1)
                (entry,) = _decisions(costed, 1)
                queued = {cost["worker"]: cost["queue_ms"] for cost in entry["costs"]}
                if queued[costed.view(worker).id] > 0:
                    seen = True
                    least = min(entry["costs"], key=lambda cost: cost["total_ms"])
                    assert entry["worker"] == least["worker"] == costed.view(routed.worker).id, str(routed)
                    break
            assert seen, "no decision met the backlog"
        finally:
            for one in kept:
                one.drop()
        costed.await_idle()
        until(lambda w=worker: not _backlog(costed, w), "no backlog")


def test_a_burst_waits_in_the_router_and_is_answered(costed: Fleet, numbers: list[str]) -> None:
    dispatched = _left_the_queue(costed, "dispatched")
    bodies = {f"burst-{n}": _body(costed, f"burst-{n}", 800, stream=n % 2 == 0) for n in range(BURST)}
    began = time.monotonic()
    asked = [_send(costed, name, body) for name, body in bodies.items()]
    seen = until(lambda: _waiting(costed), "requests that wait in the router", every=0.01)
    answers = [one.answer() for one in asked]
    secs = time.monotonic() - began
    assert all(answer.status == 200 for answer in answers), "\n".join(map(str, answers))
    assert all(answer.body.rstrip().endswith(b"data: [DONE]") for answer in answers[::2])
    _nothing_left(costed)

    entries = _decisions(costed, BURST)
    assert {entry["request_id"] for entry in entries} == set(bodies)
    assert {entry["outcome"] for entry in entries} == {"completed"}
    assert {entry["worker"] for entry in entries} == {costed.view(worker).id for worker in costed.workers}
    waited = [entry["waited_ms"] for entry in entries if entry["waited_ms"] > 0]
    assert len(waited) >= seen
    assert _left_the_queue(costed, "dispatched") - dispatched == len(waited)
    numbers.append(
        f"kv_cost: of a burst of {BURST} {len(waited)} waited in the router, {max(waited):.0f} ms at most; "
        f"all answered after {secs:.1f} s"
    )


def test_a_client_that_leaves_while_waiting_costs_nothing(costed: Fleet) -> None:
    """Those who leave have the longest prompts, so they are the last in line."""
    left = _left_the_queue(costed, "left")
    staying = {f"stays-{n}": _body(costed, f"stays-{n}", 1400, stream=True) for n in range(BURST)}
    leaving = {f"leaves-{n}": _body(costed, f"leaves-{n}", 1700, stream=n % 2 == 0) for n in range(LEAVING)}
    stay = [_send(costed, name, body) for name, body in staying.items()]
    leave = [_send(costed, name, body) for name, body in leaving.items()]
    until(lambda: _sent(costed, staying) + _waiting(costed) == BURST + LEAVING, "everybody in line", every=0.01)
    for one in leave:
        one.drop()
    answers = [one.answer() for one in stay]
    assert all(answer.status == 200 for answer in answers), "\n".join(map(str, answers))
    _nothing_left(costed)
    assert _left_the_queue(costed, "left") - left == LEAVING
    assert (_sent(costed, staying), _sent(costed, leaving)) == (BURST, 0)
    costed.settle()
    routed = costed.ask(leaving["leaves-0"]["messages"], max_tokens=1)
    assert routed.cached == routed.predicted == 0, f"a worker has seen it before: {routed}"


def _body(fleet: Fleet, name: str, tokens: int, *, stream: bool) -> dict[str, Any]:
    messages = fleet.prompts.user(("queued", name), tokens)
    return {
        "model": fleet.router.model,
        "messages": messages,
        "max_tokens": 2,
        "ignore_eos": True,
        "stream": stream,
    }


def _send(fleet: Fleet, name: str, body: Mapping[str, Any]) -> Pending:
    return Pending(f"{fleet.router.url}/v1/chat/completions", body, headers={"x-request-id": name})


def _decisions(fleet: Fleet, limit: int) -> list[Mapping[str, Any]]:
    """The newest first."""
    reply = fleet.router.call(f"/internal/decisions?limit={limit}")
    assert reply.status == 200, str(reply)
    found: list[Mapping[str, Any]] = reply.json()["decisions"]
    return found


def _sent(fleet: Fleet, names: Collection[str]) -> int:
    """How many of these requests have been sent to a worker."""
    return sum(entry["request_id"] in names for entry in _decisions(fleet, 2 * BURST))


def _everything_sent(fleet: Fleet) -> object:
    """What a request that is sent would change."""
    frames = [fleet.ledger(worker).frames for worker in fleet.workers]
    decided = [entry["request_id"] for entry in _decisions(fleet, 3)]
    return frames, decided, [(fleet.view(worker).inflight, worker.unfinished()) for worker in fleet.workers]


def _nothing_left(fleet: Fleet) -> None:
    until(lambda: sum(view.inflight for view in fleet.router.workers().values()) == 0, "nothing in flight")
    assert _waiting(fleet) == 0
    for worker in fleet.workers:  # a report that was on its way may still name what has been answered since
        until(lambda w=worker: not _backlog(fleet, w), f"no backlog of {worker.url}")


def _waiting(fleet: Fleet) -> float:
    return fleet.router.metric(f'sgl_router_queue_waiting{{model_id="{fleet.router.model}"}}')


def _left_the_queue(fleet: Fleet, outcome: str) -> float:
    labels = f'model_id="{fleet.router.model}",outcome="{outcome}"'
    return fleet.router.metric(f"sgl_router_queue_outcomes_total{{{labels}}}")


def _reports(fleet: Fleet, source: str, outcome: str) -> float:
    return fleet.router.metric(f'sgl_router_load_reports_total{{outcome="{outcome}",source="{source}"}}')


def _gauge(fleet: Fleet, name: str, worker: WorkerClient, rank: int) -> float:
    labels = f'dp_rank="{rank}",model_id="{fleet.router.model}",worker="{fleet.view(worker).id}"'
    return fleet.router.metric(f"sgl_router_{name}{{{labels}}}")


def _backlog(fleet: Fleet, worker: WorkerClient) -> float:
    ranks = range(len(fleet.view(worker).blocks()))
    return sum(_gauge(fleet, "prefill_backlog_tokens", worker, rank) for rank in ranks)


def _speed(fleet: Fleet, worker: WorkerClient) -> float:
    """What is thought of its first rank."""
    return _gauge(fleet, "prefill_tokens_per_second", worker, 0)


def _source(worker: WorkerClient) -> str:
    return "poll" if worker.server_info()["kv_events"].get("load_endpoint_port_base") is None else "channel"


def _prefilled(worker: WorkerClient) -> tuple[int, int]:
    """Tokens that its first rank has computed so far, and the microseconds that took, by its own counts."""
    load = worker.call("/v1/loads").json()["loads"][0]
    return load["total_prefill_uncached_tokens"], load["total_prefill_busy_us"]


def _target(entry: Mapping[str, Any]) -> tuple[str, int]:
    return entry["worker"], entry["dp_rank"]
