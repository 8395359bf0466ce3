from __future__ import annotations

import asyncio
import contextlib
import io
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sgl_router.observability import sink as module
from sgl_router.observability.sink import HOLD_SECS, KEEP, WRITE_AT, LineSink


@pytest.fixture(params=["own description", "polled"])
def pipe(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, io.TextIOWrapper]]:
    """The reading end and a stream on the writing end; once opened anew without blocking, once only polled."""
    if request.param == "polled":
        monkeypatch.setattr(module, "_own_description", lambda fd: None)
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    stream = os.fdopen(writer, "w", encoding="utf-8", errors="backslashreplace")
    yield reader, stream
    with contextlib.suppress(OSError):
        os.close(reader)
    with contextlib.suppress(OSError, ValueError):
        stream.close()


def read(fd: int) -> bytes:
    found = b""
    with contextlib.suppress(BlockingIOError):
        while piece := os.read(fd, 1 << 20):
            found += piece
    return found


async def arrives(fd: int, expected: bytes, within: float = 120.0) -> None:
    deadline = time.monotonic() + within
    found = b""
    while len(found) < len(expected):
        assert time.monotonic() < deadline, found[-200:]
        await asyncio.sleep(0.002)
        found += read(fd)
    assert found == expected


def add(sink: LineSink, line: str) -> None:
    sink.add(line, time.perf_counter())


async def test_lines_are_written_together_after_a_moment(pipe, monkeypatch) -> None:
    reader, stream = pipe
    sink = LineSink(stream)
    writes = []
    real = os.write
    monkeypatch.setattr(module.os, "write", lambda fd, data: writes.append(len(data)) or real(fd, data))
    for number in range(5):
        add(sink, f"line {number}\n")
    assert read(reader) == b""
    await arrives(reader, b"".join(b"line %d\n" % number for number in range(5)))
    assert len(writes) == 1
    add(sink, "again\n")  # and once more: the timer is set anew
    await arrives(reader, b"again\n")


async def test_many_lines_do_not_wait(pipe) -> None:
    reader, stream = pipe
    sink = LineSink(stream)
    line = "x" * 1023 + "\n"
    for _ in range(WRITE_AT // 1024):
        add(sink, line)
    assert len(read(reader)) == WRITE_AT


def test_without_a_loop_a_line_is_written_at_once(pipe) -> None:
    reader, stream = pipe
    add(LineSink(stream), "ünï \udc80\n")
    assert read(reader) == "ünï \\udc80\n".encode()


def test_a_loop_that_died_takes_no_lines_with_it(pipe) -> None:
    reader, stream = pipe
    sink = LineSink(stream)

    async def one(text: str) -> None:
        add(sink, text)

    asyncio.run(one("a\n"))
    assert read(reader) == b""

    async def two() -> None:
        sink.add("b\n", time.perf_counter() + HOLD_SECS)  # later than the timer that never came
        assert read(reader) == b"a\nb\n"
        add(sink, "c\n")
        await arrives(reader, b"c\n")

    asyncio.run(two())


async def test_other_lines_come_in_order_and_at_once(pipe) -> None:
    reader, stream = pipe
    sink = LineSink(stream)
    add(sink, "request 1\n")
    print("printed", file=stream)
    sink.write("warning\n")
    add(sink, "request 2\n")
    assert read(reader) == b"printed\nrequest 1\nwarning\n"
    sink.flush()
    assert read(reader) == b"request 2\n"


async def test_a_reader_that_stopped_costs_lines_not_time(pipe) -> None:
    reader, stream = pipe
    sink = LineSink(stream)
    line = "x" * 1023 + "\n"
    number = 2 * KEEP // 1024
    slowest = 0.0
    for _ in range(number):
        started = time.perf_counter()
        add(sink, line)
        slowest = max(slowest, time.perf_counter() - started)
    sink.write("a warning\n")
    assert slowest < 1.0
    assert 0 < sink.lost < number
    kept = number + 1 - sink.lost
    # It reads again: what was kept arrives, whole lines in order.
    await arrives(reader, line.encode() * kept)
    add(sink, "on\n")
    await arrives(reader, b"on\n")
    assert sink.lost == number + 1 - kept


async def test_a_reader_that_went_away_costs_lines_only(pipe) -> None:
    reader, stream = pipe
    sink = LineSink(stream)
    os.close(reader)
    add(sink, "a\n")
    add(sink, "b\n")
    sink.flush()
    sink.write("c\n")
    assert sink.lost == 3


def test_a_closed_stream_is_not_written_to(tmp_path: Path) -> None:
    stream = (tmp_path / "log").open("w")
    sink = LineSink(stream)
    number = stream.fileno()
    stream.close()
    other = os.open(tmp_path / "other", os.O_WRONLY | os.O_CREAT)
    assert other == number  # the descriptor's number has a new owner
    add(sink, "a\n")
    os.close(other)
    assert (tmp_path / "other").read_bytes() == b""
    assert sink.lost == 1


def test_files_and_streams_in_memory(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        file.write("before\n")
        sink = LineSink(file)
        for number in range(3000):
            add(sink, f"{number}\n")
        sink.close()
    assert (tmp_path / "log").read_text().splitlines() == ["before", *map(str, range(3000))]
    memory = io.StringIO()
    add(LineSink(memory), "kept\n")
    assert memory.getvalue() == "kept\n"


async def test_threads_lose_nothing(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        sink = LineSink(file)
        threads = [threading.Thread(target=lambda: [sink.write("thread\n") for _ in range(500)]) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(3000):
            add(sink, "loop\n")
        for thread in threads:
            thread.join()
        sink.close()
    written = (tmp_path / "log").read_text().splitlines()
    assert (written.count("thread"), written.count("loop"), len(written)) == (1500, 3000, 4500)


async def test_closing_waits_for_a_slow_reader_but_not_for_ever(pipe) -> None:
    reader, stream = pipe
    sink = LineSink(stream)
    line = "x" * 1023 + "\n"
    for _ in range(200):
        add(sink, line)
    got: list[bytes] = []

    def slow() -> None:
        while sum(map(len, got)) < 200 * 1024:
            time.sleep(0.001)
            got.append(read(reader))

    thread = threading.Thread(target=slow)
    thread.start()
    sink.close(within_secs=20)
    thread.join()
    assert b"".join(got) == line.encode() * 200
    for _ in range(200):
        add(sink, line)
    sink.close(within_secs=0.01)
    assert sink.lost > 0


async def test_a_forked_child_does_not_repeat_lines(pipe) -> None:
    reader, stream = pipe
    sink = LineSink(stream)
    add(sink, "parent\n")
    sink.forked()  # as in the child
    sink.write("child\n")
    assert read(reader) == b"child\n"
