from __future__ import annotations

import msgspec
import pytest

from sgl_router.kv_events import KvIndex
from sgl_router.observability import Metrics
from sgl_router.runtime.metric_deltas import Outgoing, merge
from sgl_router.workers import WorkerRegistry


def metrics() -> Metrics:
    return Metrics(WorkerRegistry(), KvIndex())


async def test_the_sum_of_all_deltas_is_what_all_have_counted() -> None:
    total, sources = metrics(), [metrics(), metrics()]
    outgoing = [Outgoing(source) for source in sources]
    for round_ in range(3):
        for number, source in enumerate(sources):
            source.requests.labels("/v1/chat/completions", "POST").inc(1 + number)
            source.errors.labels(f"e{round_}").inc()
            source.duration.labels("m").observe(0.004 * (round_ + 1))
            source.loop_lag.observe(0.5)
            merge(total, outgoing[number].take())
            assert outgoing[number].take() == b"", "nothing is told twice"
    total.requests.labels("/v1/chat/completions", "POST").inc()  # its own
    text = total.render().decode()
    assert 'sgl_router_requests_total{method="POST",route="/v1/chat/completions"} 10.0' in text
    for round_ in range(3):
        assert f'sgl_router_errors_total{{code="e{round_}"}} 2.0' in text
    assert 'sgl_router_request_duration_seconds_count{model_id="m"} 6.0' in text
    assert 'sgl_router_request_duration_seconds_bucket{le="0.005",model_id="m"} 2.0' in text
    assert 'sgl_router_request_duration_seconds_sum{model_id="m"} 0.048' in text
    assert "sgl_router_event_loop_lag_seconds_count 6.0" in text


async def test_gauges_are_told_whole_each_time() -> None:
    total, source = metrics(), metrics()
    outgoing = Outgoing(source)
    assert outgoing.take() == b""
    source.tokens_differ.set(True, "http://a")
    source.tokens_differ.set(0, "http://b")
    merge(total, outgoing.take())
    assert total.tokens_differ.values == {("http://a",): 1, ("http://b",): 0}
    total = metrics()  # a new routing process
    merge(total, outgoing.take())
    assert total.tokens_differ.values == {("http://a",): 1, ("http://b",): 0}
    source.tokens_differ.drop("http://a")
    merge(total, outgoing.take())
    assert total.tokens_differ.values == {("http://b",): 0}
    source.tokens_differ.drop("http://b")
    merge(total, outgoing.take())
    assert total.tokens_differ.values == {}
    merge(total, Outgoing(metrics()).take() or b"\x92\x80\x80")  # of a process that knows of none: nothing changes


@pytest.mark.parametrize(
    "junk",
    [b"", b"\xc1", msgspec.msgpack.encode([{"nothing": [[[], 1]]}, {}]), msgspec.msgpack.encode([{"errors": 1}, {}])],
)
async def test_what_no_process_can_have_sent_is_refused(junk: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, KeyError, ValueError)):
        merge(metrics(), junk)
