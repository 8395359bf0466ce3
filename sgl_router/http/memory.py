"""Memory for request bodies: how much there may be of it, and how what was freed goes back to the system."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from sgl_router.errors import Overloaded

if TYPE_CHECKING:
    from sgl_router.config import ServerConfig

__all__ = ["BodyBudget", "Trimmer", "body_budget", "default_budget", "prepare_malloc", "usable_memory"]

log = structlog.get_logger(__name__)

MAX_DEFAULT_BYTES = 1 << 30
DEFAULT_SHARE = 4
"""The default budget is one part in so many of the machine's memory."""
SMALL_BODY_BYTES = 256 << 10
_WARN_SECS = 60.0
_TRIM_AFTER_BYTES = 4 << 20
_TRIM_DELAY_SECS = 1.0
# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


class BodyBudget:
    """Bytes of request bodies that are held: those of a declared length from their head on, others as they arrive.

    `take` and `give` are for one thread. An eighth is left to bodies of at most SMALL_BODY_BYTES, so that large uploads
    do not keep chats out; but one body of `max_body_bytes` always fits into an empty budget.
    """

    __slots__ = ("_for_large", "_warn_at", "held", "limit")

    def __init__(self, limit: int, max_body_bytes: int = 0) -> None:
        self.limit = max(limit, max_body_bytes)
        self._for_large = max(self.limit - self.limit // 8, max_body_bytes)
        self._warn_at = 0.0
        self.held = 0

    def take(self, size: int, body_bytes: int) -> None:
        """Count `size` more bytes, of a body of `body_bytes` as far as is known. Raises Overloaded, counting none."""
        held = self.held + size
        if held > (self.limit if body_bytes <= SMALL_BODY_BYTES else self._for_large):
            self._warn()
            raise Overloaded(
                "the router's budget for request bodies (server.max_buffered_bytes) is used up; try again in a moment"
            )
        self.held = held

    def give(self, size: int) -> None:
        self.held -= size

    def _warn(self) -> None:
        now = time.monotonic()
        if now >= self._warn_at:
            self._warn_at = now + _WARN_SECS
            log.warning(
                "requests are refused: their bodies would take more memory than server.max_buffered_bytes allows",
                held_bytes=self.held,
                max_bytes=self.limit,
            )


def body_budget(config: ServerConfig) -> BodyBudget:
    """One process's share of what all may hold."""
    limit = config.max_buffered_bytes or default_budget(usable_memory())
    return BodyBudget(limit // config.processes, config.max_body_bytes)


def default_budget(memory: int) -> int:
    """`server.max_buffered_bytes` of a machine, or container, with so much memory, in bytes."""
    return min(memory // DEFAULT_SHARE, MAX_DEFAULT_BYTES)


def usable_memory(root: Path = Path("/")) -> int:
    """Bytes of memory this process can have: the machine's, or less where a cgroup (v1 or v2) says so."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for folder, name in _cgroups(root):
        while True:
            with contextlib.suppress(OSError, ValueError):  # "max" is no number: no limit
                found.append(int((folder / name).read_text()))
            if folder.name == "cgroup" or folder == folder.parent:
                break
            folder = folder.parent  # a limit further up holds, too
    return min(one for one in found if one > 0)


def _cgroups(root: Path) -> list[tuple[Path, str]]:
    """This process's memory cgroups as folders, and the file in them that has the limit."""
    base = root / "sys/fs/cgroup"
    found = [(base, "memory.max"), (base / "memory", "memory.limit_in_bytes")]
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                found.append((base / path.lstrip("/"), "memory.max"))
            elif "memory" in controllers.split(","):
                found.append((base / "memory" / path.lstrip("/"), "memory.limit_in_bytes"))
    return found


def prepare_malloc(mmap_bytes: int = 1 << 20, trim_bytes: int = 8 << 20) -> bool:
    """Have each block of at least `mmap_bytes` mapped on its own, and so returned the moment it is freed. By default
    glibc raises that bound to the size of whatever was freed last, and a body's memory then stays in the heap.

    False where the C library is another one.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, mmap_bytes)) and bool(mallopt(_M_TRIM_THRESHOLD, trim_bytes))


class Trimmer:
    """Returns to the system what large requests leave in the heap: once, some time after the last of them."""

    def __init__(self, trim: Callable[[], object] | None = None, delay_secs: float = _TRIM_DELAY_SECS) -> None:
        self._trim = _malloc_trim() if trim is None else trim
        self._delay_secs = delay_secs
        self._timer: asyncio.TimerHandle | None = None

    def freed(self, size: int) -> None:
        """A body of so many bytes is gone."""
        if size >= _TRIM_AFTER_BYTES and self._timer is None and self._trim is not None:
            self._timer = asyncio.get_running_loop().call_later(self._delay_secs, self._run)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _run(self) -> None:
        self._timer = None
        assert self._trim is not None
        asyncio.get_running_loop().run_in_executor(None, self._trim)  # it takes milliseconds


def _malloc_trim() -> Callable[[], object] | None:
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
    return lambda: trim(0)
