"""What the machine did meanwhile: CPU time and memory of process trees, and how much of it was somebody else's."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import resource
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


def tree(root: int) -> list[int]:
    """The process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                children.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
    found, queue = [], [root]
    while queue:
        pid = queue.pop()
        found.append(pid)
        queue += children.get(pid, ())
    return found


def cpu_secs(pids: Iterable[int]) -> float:
    """User and system time; processes that are gone count nothing."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = _stat(pid)
            ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS


def rss_bytes(pids: Iterable[int]) -> int:
    """Resident memory, summed: what processes share counts once for each."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    return total


def raise_file_limit() -> int:
    """Open files allowed to this process and its children: the hard limit, and above it where that is permitted."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536
    if hard != resource.RLIM_INFINITY and hard < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
            return wanted
    limit = wanted if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit


@dataclass(frozen=True)
class Usage:
    """Between two looks, in seconds. `foreign`: CPU time of nobody in the benchmark; `steal`: of other machines."""

    wall: float
    router: float
    foreign: float
    steal: float

    @property
    def util(self) -> float:
        return self.router / self.wall

    @property
    def foreign_cores(self) -> float:
        return (self.foreign + self.steal) / self.wall


class Meter:
    """Looks twice: `start`, then `stop` while every measured process still lives."""

    def __init__(self, router: Iterable[int], others: Iterable[int]) -> None:
        self._router = tuple(router)
        self._others = tuple(others)

    def start(self) -> None:
        self._at = self._look()

    def stop(self) -> Usage:
        before, after = self._at, self._look()
        wall, router, others, busy, steal = (b - a for a, b in zip(before, after, strict=True))
        return Usage(wall, router, max(busy - router - others, 0.0), steal)

    def _look(self) -> tuple[float, float, float, float, float]:
        fields = [int(field) for field in Path("/proc/stat").read_text().partition("\n")[0].split()[1:]]
        # Interrupt time is left out on both sides: the kernel does not charge it to processes.
        busy, steal = sum(fields[:3]) / TICKS, fields[7] / TICKS
        return time.monotonic(), cpu_secs(self._router), cpu_secs((*self._others, os.getpid())), busy, steal


def describe(packages: Iterable[str]) -> str:
    """One line on the machine and what ran."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    versions = []
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    return (
        f"{os.cpu_count()} cores ({model}), load average {os.getloadavg()[0]:.1f} at the start; "
        f"{platform.system()} {platform.release()}; {platform.python_implementation()} {platform.python_version()}; "
        + ", ".join(versions)
    )


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat after the name, which may hold spaces: [0] is the state, [1] the parent."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
