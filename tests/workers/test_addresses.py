from __future__ import annotations

import pytest

from sgl_router.workers.addresses import is_dialable, is_loopback, is_wildcard, split_tcp, url_host


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        ("tcp://*:5557", ("*", 5557)),
        ("tcp://0.0.0.0:1", ("0.0.0.0", 1)),
        ("tcp://[::]:65535", ("::", 65535)),
        ("tcp://:::5557", ("::", 5557)),
        ("tcp://worker-0.svc:5557", ("worker-0.svc", 5557)),
        ("tcp://[fd00::1]:5557", ("fd00::1", 5557)),
        ("tcp://*:0", None),
        ("tcp://*:65536", None),
        ("tcp://*:५५", None),
        ("tcp://*", None),
        ("tcp://a b:5557", None),
        ("ipc:///tmp/x", None),
        ("inproc://cache", None),
        ("", None),
        (None, None),
        (5557, None),
    ],
)
def test_split_tcp(endpoint: object, address: tuple[str, int] | None) -> None:
    assert split_tcp(endpoint) == address


def test_kinds_of_hosts() -> None:
    assert all(map(is_wildcard, ("*", "0.0.0.0", "::", "[::]", "")))
    assert not any(map(is_wildcard, ("127.0.0.1", "worker", "::1")))
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost", "LOCALHOST")))
    assert not any(map(is_loopback, ("10.0.0.1", "worker", "*", "")))
    assert is_dialable("worker_0.svc") and not is_dialable("") and not is_dialable("a/b")


def test_url_host() -> None:
    assert url_host("http://[fd00::1]:30000") == "fd00::1"
    assert url_host("https://worker:443") == "worker"
