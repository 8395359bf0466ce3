"""File descriptors: how many this process may open, what they are kept for, and how a shortage is told."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import socket
import time
from collections import Counter
from pathlib import Path

import structlog

__all__ = ["EVENT_SOCKET", "Descriptors", "in_use", "raise_limit", "remedy", "shortage", "spare", "tell_shortage"]

log = structlog.get_logger(__name__)

EVENT_SOCKET = 4
"""Descriptors of one subscription: its socket and its monitor's, their two mailboxes, one to spare."""

# For listeners, ZMQ contexts, replays, name look-ups, files, log pipes, links between processes.
_RESERVED = 48
# A probe and a load report may be under way at once.
_PER_WORKER = 2
_REMIND_SECS = 60.0
_ADVICE = 65_536

_WORDS = {
    errno.EMFILE: "the router has no file descriptor left",
    errno.ENFILE: "this machine has no file descriptor left",
    errno.ENOBUFS: "the kernel has no buffer left for sockets",
    errno.ENOMEM: "the kernel has no memory left for sockets",
    errno.EADDRNOTAVAIL: "no local port is left for connections to a worker",
}
_REMEDIES = {
    errno.ENFILE: "sysctl fs.file-max",
    errno.ENOBUFS: "sysctl net.core, net.ipv4.tcp_mem",
    errno.ENOMEM: "more memory, sysctl net.ipv4.tcp_mem",
    errno.EADDRNOTAVAIL: "sysctl net.ipv4.ip_local_port_range, or fewer connections to one worker address",
}
_NUMBER = re.compile(r"\[Errno (\d+)\]")


class Descriptors:
    """The budget of one process, shared out once: a reserve, event sockets (at most half of the rest), clients.

    Each client that is let in has a descriptor kept for its connection to a worker. `limit`: RLIMIT_NOFILE;
    `in_use`: open before the router opens any; `workers`: how many are configured.
    """

    def __init__(self, limit: int = 1 << 20, in_use: int = 0, workers: int = 0) -> None:
        self.limit = limit
        left = max(limit - in_use, 0)
        self._left = left - min(_RESERVED + _PER_WORKER * workers, left // 3)
        self._events = 0
        self._share()

    def claim(self, count: int) -> bool:
        """Set `count` descriptors aside for event sockets; False, with a log line, where they do not fit."""
        if self._events + count > self._left // 2:
            return False
        self._events += count
        self._share()
        return True

    def give_back(self, count: int) -> None:
        """What was claimed is free again."""
        self._events -= count
        self._share()

    def advice(self, missing: int = 0) -> int:
        """A limit that is enough, with `missing` more descriptors for event sockets than there are."""
        wanted = max(_ADVICE, self.limit + 2 * missing)
        return 1 << (wanted - 1).bit_length()

    def _share(self) -> None:
        free = self._left - self._events
        margin = max(free // 8, 8)
        self.requests = max((free - margin) // 2, 1)
        """Requests under way that need a worker; more are refused with `overloaded`."""
        self.connections = self.requests + margin // 2
        """Clients' connections; more wait in the kernel's queue."""
        self.backlog = min(2_048, margin // 2)
        """The length of that queue, which the event loop may accept as a whole before the budget is looked at."""


def raise_limit() -> int:
    """Raise the soft limit of open files as far as the hard one allows. The limit now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        # Under an unlimited hard one the kernel still has a limit of its own, which it does not tell.
        for wanted in (1 << 20, 65_536, 10_240) if hard == resource.RLIM_INFINITY else (hard,):
            if wanted > soft:
                with contextlib.suppress(ValueError, OSError):
                    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
                    return wanted
        return soft
    return 1 << 20


def in_use() -> int:
    """Descriptors this process has open; a guess where the system does not list them."""
    try:
        return sum(1 for _ in Path("/proc/self/fd").iterdir()) - 1  # less the one that lists them
    except OSError:
        return 16


def shortage(error: BaseException | None) -> int | None:
    """The errno where a connection failed for want of something on this machine; None for anything else.

    A name with several addresses fails with one error for all: it is a shortage where each of them is.
    """
    if isinstance(error, socket.gaierror):
        if error.errno == socket.EAI_MEMORY:
            return errno.ENOMEM
        return None if spare(4) else errno.EMFILE  # the resolver says of a file it cannot open that there is no name
    if not isinstance(error, OSError):
        return None
    if error.errno is not None:
        return error.errno if error.errno in _WORDS else None
    numbers = [int(number) for number in _NUMBER.findall(str(error))]
    if numbers and all(number in _WORDS for number in numbers):
        return numbers[-1]
    return None


def spare(count: int) -> bool:
    """Whether so many descriptors can be opened at this moment."""
    opened: list[int] = []
    try:
        while len(opened) < count:
            opened.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        return False
    finally:
        for descriptor in opened:
            os.close(descriptor)
    return True


def tell_shortage(code: int, consequence: str, **details: object) -> None:
    """Log what is missing, what that means and what to set: each consequence once a minute, with how often."""
    key = (code, consequence)
    now = time.monotonic()
    _untold[key] += 1
    if now - _told.get(key, -_REMIND_SECS) < _REMIND_SECS:
        return
    _told[key] = now
    times = _untold.pop(key)
    if code == errno.EMFILE:
        details["limit"] = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    log.warning(f"{_WORDS[code]}: {consequence}", **details, times=times, set=remedy(code))


def remedy(code: int = errno.EMFILE, number: int = _ADVICE) -> str:
    """What an operator can set."""
    if code == errno.EMFILE:
        return f"ulimit -Hn {number} (systemd: LimitNOFILE={number}, docker: --ulimit nofile={number})"
    return _REMEDIES[code]


_told: dict[tuple[int, str], float] = {}
_untold: Counter[tuple[int, str]] = Counter()
