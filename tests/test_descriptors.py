from __future__ import annotations

import errno
import resource
import socket
import subprocess
import sys
from typing import Any

import pytest
import structlog

from sgl_router import descriptors
from sgl_router.descriptors import EVENT_SOCKET, Descriptors, shortage, tell_shortage


@pytest.mark.parametrize("limit", [64, 128, 256, 1_024, 4_096, 65_536, 1 << 20])
@pytest.mark.parametrize("workers", [0, 4, 40])
def test_what_is_let_in_never_exceeds_the_limit(limit: int, workers: int) -> None:
    budget, in_use = Descriptors(limit, in_use=12, workers=workers), 12
    claimed = 0
    while True:
        # All that the event loop may have accepted before it looks, and a connection to a worker for each request.
        accepted = budget.connections + budget.backlog
        assert in_use + claimed + accepted + budget.requests <= limit
        assert budget.requests >= 1
        assert budget.backlog >= 4
        if not budget.claim(EVENT_SOCKET) or claimed > 4_096:
            break
        claimed += EVENT_SOCKET
    assert claimed < limit / 2, "event sockets leave clients at least as much as they take"


def test_what_is_given_back_can_be_claimed_again() -> None:
    budget = Descriptors(256, in_use=12)
    before = budget.requests, budget.connections
    while budget.claim(EVENT_SOCKET):
        pass
    assert budget.requests < before[0]
    budget.give_back(EVENT_SOCKET)
    assert budget.claim(EVENT_SOCKET)
    assert not budget.claim(EVENT_SOCKET)
    assert Descriptors(256).advice() == 65_536
    assert Descriptors(60_000).advice(10_000) == 131_072


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.EMFILE, "Too many open files"), errno.EMFILE),
        (OSError(errno.ENFILE, "Too many open files in system"), errno.ENFILE),
        (OSError(errno.ENOBUFS, "No buffer space available"), errno.ENOBUFS),
        (OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address"), errno.EADDRNOTAVAIL),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), None),
        (TimeoutError(), None),
        (ValueError(), None),
        (None, None),
        # As asyncio and uvloop put it, for a name with two addresses.
        (OSError("Multiple exceptions: [Errno 24] Too many open files, [Errno 24] Too many open files"), errno.EMFILE),
        (OSError("Multiple exceptions: [Errno 99] Cannot assign requested address, [Errno 24] Too many"), errno.EMFILE),
        (OSError("Multiple exceptions: [Errno 99] Cannot assign requested address, [Errno 111] Connect"), None),
        (OSError("connection lost"), None),
    ],
)
def test_a_shortage_is_told_from_a_worker_that_fails(error: BaseException | None, code: int | None) -> None:
    assert shortage(error) == code


def test_a_name_that_cannot_be_looked_up_for_want_of_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    assert shortage(error) is None
    monkeypatch.setattr(descriptors, "spare", lambda count: False)
    assert shortage(error) == errno.EMFILE


def test_each_consequence_is_told_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000.0
    monkeypatch.setattr(descriptors, "_told", {})
    monkeypatch.setattr(descriptors.time, "monotonic", lambda: now)
    with structlog.testing.capture_logs() as lines:
        for _ in range(100):
            tell_shortage(errno.EMFILE, "something waits")
        tell_shortage(errno.EADDRNOTAVAIL, "something waits")
        now += 61
        tell_shortage(errno.EMFILE, "something waits")
    first, ports, later = lines
    assert first["event"] == "the router has no file descriptor left: something waits"
    assert "ulimit -Hn 65536" in first["set"]
    assert "LimitNOFILE=65536" in first["set"]
    assert first["limit"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert "ip_local_port_range" in ports["set"]
    assert (first["times"], later["times"]) == (1, 100)


def in_a_process(code: str, soft: int, hard: int) -> str:
    done: Any = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)),
    )
    assert done.returncode == 0, done.stderr
    return str(done.stdout.strip())


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    code = "import resource; from sgl_router.descriptors import raise_limit; "
    code += "print(raise_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))"
    assert in_a_process(code, 128, 512) == "512 512 512"
    assert in_a_process(code, 256, 256) == "256 256 256"


def test_spare_descriptors_are_counted_and_left() -> None:
    code = "import os; from sgl_router.descriptors import spare, in_use; n = in_use(); "
    code += "print(spare(64 - n), spare(65 - n), in_use() - n)"
    assert in_a_process(code, 64, 64) == "True False 0"
