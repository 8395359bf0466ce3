"""Faults a mock worker commits on request, and the tally of how often each is still due."""

from __future__ import annotations

import asyncio
from enum import Enum

import msgspec


class FaultKind(str, Enum):
    """What goes wrong at the HTTP surface.

    HANG never answers (before headers); HANG_STREAM stops after `after_chunks` events; RESET tears the
    connection down (RST) before headers, or after `after_chunks` events of a stream; TRUNCATE ends the
    body early (a buffered one below its content-length, a stream without its terminator); STATUS
    answers with an error; SLOW_FIRST_BYTE waits `delay_secs` before the headers.
    """

    HANG = "hang"
    HANG_STREAM = "hang_stream"
    RESET = "reset"
    TRUNCATE = "truncate"
    STATUS = "status"
    SLOW_FIRST_BYTE = "slow_first_byte"


class FaultScope(str, Enum):
    """Which requests a fault applies to: generating ones, everything else, or both."""

    GENERATE = "generate"
    PROBE = "probe"
    ALL = "all"


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One fault; `times` None lasts until cleared."""

    kind: FaultKind
    scope: FaultScope = FaultScope.GENERATE
    times: int | None = None
    after_chunks: int = 0
    status: int = 500
    message: str = "Internal Server Error"
    retry_after: str | None = None
    delay_secs: float = 0.0


class Faults:
    """The script of faults, first added first committed."""

    def __init__(self) -> None:
        self._due: list[tuple[Fault, int | None]] = []
        self._cleared = asyncio.Event()

    def add(self, fault: Fault) -> None:
        """Commit `fault` from now on."""
        self._due.append((fault, fault.times))

    def hang(self, *, scope: FaultScope = FaultScope.GENERATE, times: int | None = None) -> None:
        """Accept, and never answer until cleared."""
        self.add(Fault(kind=FaultKind.HANG, scope=scope, times=times))

    def hang_stream(self, *, after_chunks: int, times: int | None = None) -> None:
        """Fall silent in the middle of a stream."""
        self.add(Fault(kind=FaultKind.HANG_STREAM, after_chunks=after_chunks, times=times))

    def reset(
        self,
        *,
        after_chunks: int = 0,
        scope: FaultScope = FaultScope.GENERATE,
        times: int | None = None,
    ) -> None:
        """Tear the connection down."""
        self.add(Fault(kind=FaultKind.RESET, after_chunks=after_chunks, scope=scope, times=times))

    def truncate(self, *, after_chunks: int = 0, times: int | None = None) -> None:
        """End a body before its end."""
        self.add(Fault(kind=FaultKind.TRUNCATE, after_chunks=after_chunks, times=times))

    def status(
        self,
        status: int,
        *,
        scope: FaultScope = FaultScope.GENERATE,
        times: int | None = None,
        retry_after: str | None = None,
        message: str = "Internal Server Error",
    ) -> None:
        """Answer with an error status."""
        self.add(
            Fault(
                kind=FaultKind.STATUS,
                scope=scope,
                times=times,
                status=status,
                retry_after=retry_after,
                message=message,
            )
        )

    def slow_first_byte(self, delay_secs: float, *, times: int | None = None) -> None:
        """Wait before the headers."""
        self.add(Fault(kind=FaultKind.SLOW_FIRST_BYTE, delay_secs=delay_secs, times=times))

    def clear(self) -> None:
        """Behave from now on; whoever hangs is let go."""
        self._due.clear()
        self._cleared.set()
        self._cleared = asyncio.Event()

    def active(self) -> list[Fault]:
        """The faults still due."""
        return [fault for fault, _ in self._due]

    def take(self, scope: FaultScope) -> Fault | None:
        """The fault to commit on a request of `scope`, counted as committed."""
        for index, (fault, left) in enumerate(self._due):
            if fault.scope is not FaultScope.ALL and fault.scope is not scope:
                continue
            if left is not None:
                if left <= 1:
                    del self._due[index]
                else:
                    self._due[index] = (fault, left - 1)
            return fault
        return None

    async def until_cleared(self) -> None:
        """Hang."""
        await self._cleared.wait()
