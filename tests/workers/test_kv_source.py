from __future__ import annotations

from sgl_router.workers import KvEventSource


def test_ranks_offset_every_port() -> None:
    source = KvEventSource("10.0.0.1", 5557, "kv", replay_port_base=5600, load_port_base=5700, load_topic="load")
    assert [source.endpoint(rank) for rank in (0, 3)] == ["tcp://10.0.0.1:5557", "tcp://10.0.0.1:5560"]
    assert source.replay_endpoint(1) == "tcp://10.0.0.1:5601"
    assert source.load_endpoint(2) == "tcp://10.0.0.1:5702"


def test_absent_channels_have_no_endpoint() -> None:
    source = KvEventSource("worker", 5557)
    assert source.replay_endpoint(0) is None and source.load_endpoint(0) is None


def test_ipv6_hosts_are_bracketed() -> None:
    source = KvEventSource("fd00::1", 5557, replay_port_base=5600, replay_host="::1")
    assert source.endpoint(0) == "tcp://[fd00::1]:5557"
    assert source.replay_endpoint(0) == "tcp://[::1]:5600"
