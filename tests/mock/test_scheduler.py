"""The engine model: order, timing, chunks, admission, aborts."""

from __future__ import annotations

import math
from typing import Any

import pytest

from sgl_router.lab.mock_worker.config import MockWorkerConfig, Role
from sgl_router.lab.mock_worker.ops import BlocksStored, CacheOp
from sgl_router.lab.mock_worker.radix import RadixCache
from sgl_router.lab.mock_worker.scheduler import EngineModel, EngineRequest, FinishReason, Progress
from sgl_router.lab.mock_worker.timing import TimingModel

TIMING = TimingModel(
    prefill_tokens_per_sec=1000, prefill_overhead_ms=0, decode_ms_per_token=10, decode_ms_per_running=1
)


def build(capacity: int = 4096, **settings: Any) -> tuple[EngineModel, list[CacheOp]]:
    ops: list[CacheOp] = []
    cache = RadixCache(page_size=4, capacity=capacity, listener=ops.append)
    options = {"max_running": 8, "chunked_prefill_size": 100, **settings}
    return EngineModel(cache, TIMING, **options), ops


def request(rid: str, start: int, prompt: int, output: int = 2) -> EngineRequest:
    return EngineRequest(rid, tuple(range(start, start + prompt)), tuple(range(9000, 9000 + output)))


def run(model: EngineModel, now: float = 0.0) -> tuple[float, list[Progress]]:
    """Run until idle; returns the time and everything produced."""
    progress: list[Progress] = []
    while (ends_at := model.begin_step(now)) is not None:
        now = ends_at
        progress += model.end_step(now).progress
    return now, progress


def test_prefill_then_one_token_per_step() -> None:
    model, _ = build()
    one = request("one", 0, 50, output=3)
    assert model.submit(one, 0.0)
    now, progress = run(model)
    assert now == pytest.approx(0.050 + 2 * 0.011)
    assert one.first_token_at == pytest.approx(0.050)
    assert [step.tokens for step in progress] == [(9000,), (9001,), (9002,)]
    assert [step.finish for step in progress] == [None, None, FinishReason.LENGTH]
    assert model.idle


def test_a_cached_prefix_costs_no_prefill_time() -> None:
    model, _ = build()
    model.submit(request("one", 0, 80), 0.0)
    now, _ = run(model)
    again = request("two", 0, 80)
    model.submit(again, now)
    run(model, now)
    assert again.cached_tokens == 76
    assert again.first_token_at == pytest.approx(now + 0.004)


def test_long_prompts_are_prefilled_in_chunks_that_are_cached_as_they_come() -> None:
    model, ops = build()
    model.submit(request("long", 0, 250), 0.0)
    ops.clear()
    lengths = []
    now = model.begin_step(0.0)
    while now is not None:
        model.end_step(now)
        lengths.append(sum(len(op.units) for op in ops if isinstance(op, BlocksStored)))
        ops.clear()
        now = model.begin_step(now)
    assert lengths[:3] == [100, 100, 48]


def test_a_chunk_is_shared_by_several_prompts() -> None:
    model, _ = build()
    for index in range(3):
        model.submit(request(str(index), 1000 * index, 40, output=1), 0.0)
    assert model.begin_step(0.0) == pytest.approx(0.100)
    assert [step.request.rid for step in model.end_step(0.1).progress] == ["0", "1"]
    assert model.begin_step(0.1) == pytest.approx(0.120)
    assert [step.request.rid for step in model.end_step(0.12).progress] == ["2"]


def test_requests_wait_for_a_free_slot_in_order() -> None:
    model, _ = build(max_running=1)
    for index in range(3):
        model.submit(request(str(index), 1000 * index, 8), 0.0)
    _, progress = run(model)
    assert [step.request.rid for step in progress if step.finish] == ["0", "1", "2"]


def test_a_full_queue_refuses() -> None:
    model, _ = build(queue_limit=1)
    assert model.submit(request("a", 0, 8), 0.0)
    assert not model.submit(request("b", 0, 8), 0.0)


def test_what_can_never_fit_is_refused() -> None:
    model, _ = build(capacity=16)
    assert not model.submit(request("a", 0, 16, output=2), 0.0)


def test_admission_leaves_room_for_everyone_to_finish() -> None:
    model, _ = build(capacity=64, max_running=8)
    requests = [request(str(index), 1000 * index, 4, output=28) for index in range(6)]
    for item in requests:
        assert model.submit(item, 0.0)
    assert model.begin_step(0.0) is not None
    assert (model.load().running, model.load().waiting) == (2, 4)
    model.end_step(0.04)
    run(model, 0.04)
    assert all(item.finished_at is not None for item in requests)
    assert model.cache.reserved_tokens == model.cache.locked_tokens == 0


def test_a_finished_answer_is_cached_without_its_last_token() -> None:
    model, _ = build()
    model.submit(request("a", 0, 8, output=9), 0.0)
    run(model)
    path = [*range(8), *range(9000, 9009)]
    assert model.cache.peek([*path, 1]) == 16
    model.submit(EngineRequest("b", tuple(range(8)), tuple(range(9000, 9008))), 0.0)
    assert model.cache.peek([*path[:16], 1]) == 16


def test_aborting_a_waiting_request_ends_it_at_once() -> None:
    model, _ = build(max_running=1)
    model.submit(request("a", 0, 8), 0.0)
    model.submit(request("b", 100, 8), 0.0)
    model.begin_step(0.0)
    (ended,) = model.abort(lambda item: item.rid == "b", 0.0)
    assert ended.finish is FinishReason.ABORT
    assert model.load().waiting == 0


def test_aborting_a_running_request_keeps_what_it_computed() -> None:
    model, _ = build()
    model.submit(request("a", 0, 8, output=50), 0.0)
    now = 0.0
    for _ in range(10):
        ends_at = model.begin_step(now)
        assert ends_at is not None
        now = ends_at
        model.end_step(now)
    assert model.abort(lambda item: True, now) == []
    _, progress = run(model, now)
    assert [step.finish for step in progress] == [FinishReason.ABORT]
    assert model.idle
    assert model.cache.peek([*range(8), *range(9000, 9020)]) == 16
    assert model.cache.reserved_tokens == model.cache.locked_tokens == 0


def test_aborting_between_chunks_keeps_the_chunks() -> None:
    model, _ = build()
    model.submit(request("a", 0, 250), 0.0)
    model.begin_step(0.0)
    model.end_step(0.1)
    model.abort(lambda item: True, 0.1)
    run(model, 0.1)
    assert model.cache.peek(range(250)) == 200
    assert model.cache.reserved_tokens == model.cache.locked_tokens == 0


def test_an_answer_may_have_no_tokens() -> None:
    model, _ = build()
    model.submit(request("a", 0, 8, output=0), 0.0)
    _, progress = run(model)
    assert [(step.tokens, step.finish) for step in progress] == [((), FinishReason.LENGTH)]


def test_events_leave_with_prefill_and_every_few_decode_steps() -> None:
    model, _ = build(decode_log_interval=3)
    model.submit(request("a", 0, 8, output=8), 0.0)
    flushed = []
    now = model.begin_step(0.0)
    while now is not None:
        flushed.append(model.end_step(now).flush_events)
        now = model.begin_step(now)
    assert flushed == [True, False, False, True, False, False, True, False]


def test_load_counts_what_waits() -> None:
    model, _ = build(max_running=1)
    model.submit(request("a", 0, 40), 0.0)
    run(model)
    model.submit(request("b", 500, 8), 0.0)
    model.submit(request("c", 0, 40), 0.0)
    model.begin_step(0.0)
    load = model.load()
    assert (load.running, load.waiting, load.waiting_uncached_tokens) == (1, 1, 4)
    assert load.used_tokens == 8


def test_steps_alternate() -> None:
    model, _ = build()
    with pytest.raises(RuntimeError, match="no step"):
        model.end_step(0.0)
    model.submit(request("a", 0, 8), 0.0)
    model.begin_step(0.0)
    with pytest.raises(RuntimeError, match="not ended"):
        model.begin_step(0.0)


def test_speed_divides_every_duration() -> None:
    config = MockWorkerConfig(
        prefill_tokens_per_sec=1000, prefill_overhead_ms=100, decode_ms_per_token=20, decode_ms_per_running=5
    )
    for speed in (1.0, 2.0):
        timing = TimingModel.of(MockWorkerConfig(**{**_fields(config), "speed": speed}))
        assert timing.prefill_secs(100) == pytest.approx(0.2 / speed)
        assert timing.decode_secs(4) == pytest.approx(0.04 / speed)
    instant = TimingModel.of(MockWorkerConfig(**{**_fields(config), "speed": math.inf}))
    assert instant.prefill_secs(10**6) == instant.decode_secs(50) == 0.0


def test_a_decode_worker_receives_its_prefill() -> None:
    assert TimingModel.of(MockWorkerConfig(role=Role.DECODE)).prefill_secs(1000) == 0.0


def _fields(config: MockWorkerConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__struct_fields__}
