"""Where log lines go: collected for a moment, then written together, never waiting for whoever reads them."""

from __future__ import annotations

import asyncio
import os
import select
import stat
import threading
import time
from itertools import accumulate, takewhile
from typing import TextIO

__all__ = ["LineSink"]

HOLD_SECS = 0.05
RETRY_SECS = 0.002
WRITE_AT = 32 << 10
# What is kept for a reader that has stopped reading; beyond it new lines are dropped and counted.
KEEP = 8 << 20
# A pipe with room takes this much whole: lines of several processes do not mix, and the write does not block.
_PIECE = 4096


class LineSink:
    """Lines of a stream. `add` collects, from the event loop's thread; `write` is for any thread and keeps the order.

    A line is written at the latest `HOLD_SECS` after it was added. Where the stream takes no more (a pipe nobody
    reads), up to `KEEP` characters wait and what exceeds that is lost; where it fails (closed, disk full), what
    was to be written is lost. `lost` counts these lines. Nothing here raises.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._errors = getattr(stream, "errors", None) or "backslashreplace"
        try:
            self._fd: int | None = stream.fileno()
        except (AttributeError, OSError, ValueError):
            self._fd = None  # a stream that exists in memory only
        self._own_fd: int | None = None
        self._poll: select.poll | None = None
        if self._fd is not None and not stat.S_ISREG(os.fstat(self._fd).st_mode):
            self._own_fd = _own_description(self._fd)
            self._poll = select.poll()
            self._poll.register(self._fd, select.POLLOUT)
        self._lines: list[str] = []
        self._size = 0
        self._rest = b""  # of a piece that was taken in part, and how many lines that piece had
        self._rest_lines = 0
        self._due = 0.0  # by perf_counter; 0: nobody is set to write what is held
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._blocked = False
        self._writing = False
        self._lock = threading.RLock()  # re-entered where the garbage collector runs something that logs
        self.lost = 0

    def add(self, line: str, now: float) -> None:
        """Collect one line with its newline; `now` is `time.perf_counter()`."""
        self._lines.append(line)
        self._size += len(line)
        if now >= self._due or self._size >= WRITE_AT:
            self._turn(now)

    def write(self, text: str) -> int:
        """Write what is held, then this: as a file would, so that logging can be given a sink."""
        self._lines.append(text)
        self._size += len(text)
        self.flush()
        return len(text)

    def flush(self) -> None:
        """Write what is held, as far as the stream takes it without waiting."""
        with self._lock:
            if self._writing:
                return  # the call that is writing takes this line too
            self._writing = True
            try:
                if self._fd is None:
                    self._write_stream()
                else:
                    self._write_fd(self._fd)
            finally:
                self._writing = False
                self._size = sum(map(len, self._lines))
                self._bound()

    def close(self, within_secs: float = 1.0) -> None:
        """Write what is held, waiting a while for a reader that is slow; what it does not take is lost."""
        deadline = time.perf_counter() + within_secs
        self.flush()
        while self._blocked and self._poll is not None and (left := deadline - time.perf_counter()) > 0:
            self._poll.poll(left * 1e3)
            self.flush()
        with self._lock:
            self.lost += len(self._lines) + (self._rest_lines if self._rest else 0)
            self._lines.clear()
            self._rest = b""
            self._size = 0
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._own_fd is not None:
                os.close(self._own_fd)
                self._own_fd = None

    def forked(self) -> None:
        """In a child process: what is held is the parent's to write."""
        self._lock = threading.RLock()
        self._lines.clear()
        self._rest = b""
        self._size = 0
        self._due = 0.0
        self._timer = self._loop = None
        self._writing = False

    def _turn(self, now: float) -> None:
        """Set a timer for lines that nobody is set to write; write them where it is late or there are many."""
        if self._blocked:
            if now >= self._due:
                self._due = now + RETRY_SECS
                self.flush()
            else:
                self._bound()
        elif self._due or self._size >= WRITE_AT:
            self.flush()
            self._due = 0.0
        if self._lines or self._rest:
            self._arm(now)

    def _arm(self, now: float) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()  # without a loop nothing would come back to what is held
            return
        wait = RETRY_SECS if self._blocked else HOLD_SECS
        self._due = now + wait
        if self._timer is None or self._loop is not loop:
            self._loop = loop
            self._timer = loop.call_later(wait, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._due = 0.0
        self.flush()
        if self._lines or self._rest:
            self._arm(time.perf_counter())

    def _bound(self) -> None:
        """Drop the newest lines beyond what is kept."""
        with self._lock:
            while self._size > KEEP and self._lines:
                self._size -= len(self._lines.pop())
                self.lost += 1

    def _write_stream(self) -> None:
        while self._lines:
            lines = self._take(None)
            try:
                self._stream.write("".join(lines))
                self._stream.flush()
            except (OSError, ValueError):
                self.lost += len(lines)

    def _write_fd(self, fd: int) -> None:
        try:
            self._stream.flush()  # what others printed comes first
        except ValueError:  # closed: the number of its descriptor may be somebody else's by now
            self.lost += len(self._lines)
            self._lines.clear()
            self._rest = b""
        except OSError:
            pass
        piece = None if self._poll is None else _PIECE
        while self._rest or self._lines:
            try:
                if not self._rest:
                    lines = self._take(piece)
                    self._rest_lines = len(lines)
                    self._rest = "".join(lines).encode(self._encoding, self._errors)
                if not self._write_some(fd):
                    self._blocked = True
                    return
            except (OSError, ValueError):  # closed, full; or not to be said in the stream's encoding
                self.lost += self._rest_lines
                self._rest = b""
        self._blocked = False

    def _write_some(self, fd: int) -> bool:
        """Write `_rest` or its beginning. False where that would wait."""
        if self._poll is None:
            self._rest = self._rest[os.write(fd, self._rest) :]
            return True
        if self._own_fd is None and not self._poll.poll(0):
            return False
        try:
            written = os.write(fd if self._own_fd is None else self._own_fd, self._rest[:_PIECE])
        except BlockingIOError:
            return False
        self._rest = self._rest[written:]
        return True

    def _take(self, most: int | None) -> list[str]:
        """The oldest lines: all of them, or at least one and no more than `most` characters."""
        number = len(self._lines)
        if most is not None:
            sizes = accumulate(map(len, self._lines[: most // 64]))
            number = max(1, sum(1 for _ in takewhile(most.__ge__, sizes)))
        taken = self._lines[:number]
        del self._lines[:number]
        return taken


def _own_description(fd: int) -> int | None:
    """The same pipe opened again without blocking: the flag on `fd` itself would be shared with other processes."""
    if not stat.S_ISFIFO(os.fstat(fd).st_mode):
        return None
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
