from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import sys

import pytest

CODE = """
import sys, structlog
from sgl_router.observability import configure_logging
configure_logging(sys.argv[1], sys.argv[2])
log = structlog.get_logger("x")
log.debug("quiet")
log.info("spoken", worker="w-1", odd=object)
log.warning("loud")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("failed")
"""


def run(level: str, fmt: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", CODE, level, fmt], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_json_is_one_object_per_line() -> None:
    lines = [json.loads(line) for line in run("info", "json")]
    assert [line["event"] for line in lines] == ["spoken", "loud", "failed"]
    assert lines[0]["worker"] == "w-1"
    assert {"timestamp", "level"} <= set(lines[0])
    assert "ZeroDivisionError" in lines[2]["exception"]


def test_text_has_no_colour_codes_off_a_terminal() -> None:
    text = "\n".join(run("info", "text"))
    assert "spoken" in text
    assert "worker=w-1" in text
    assert "\x1b[" not in text


@pytest.mark.parametrize(("level", "events"), [("debug", 4), ("warning", 2), ("error", 1)])
def test_levels_filter(level: str, events: int) -> None:
    assert len(run(level, "json")) == events


ORDER = """
import asyncio, sys, structlog
from types import SimpleNamespace
from sgl_router.observability import RequestRecord, configure_logging
from sgl_router.outcome import Outcome
from sgl_router.observability import logs
import logging
configure_logging(sys.argv[1], sys.argv[2])
log = structlog.get_logger("x")
def request(name):
    record = RequestRecord(name)
    record.outcome = Outcome.REJECTED
    record.status = 400
    record.finish(SimpleNamespace(records_lost=None))
async def main():
    request("first")
    log.info("second")
    request("third")
    logging.getLogger("other").warning("fourth")
    request("fifth")
asyncio.run(main())
"""


@pytest.mark.parametrize("fmt", ["text", "json"])
def test_lines_of_requests_keep_their_place_and_the_last_is_written_at_exit(fmt: str) -> None:
    done = subprocess.run([sys.executable, "-c", ORDER, "info", fmt], capture_output=True, text=True, timeout=240)
    found = done.stderr.splitlines()
    assert len(found) == 5, done.stderr
    for line, word in zip(found, ("first", "second", "third", "fourth", "fifth"), strict=True):
        assert word in line


def test_a_full_pipe_holds_up_nothing() -> None:
    code = ORDER.replace('    request("fifth")', "    for _ in range(2000): request('x' * 60)")
    code += "print(logs.take_lost_lines() == 0, flush=True)\n"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "info", "json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"True\n"  # 2,000 lines are more than a pipe holds, and nobody reads them
    _, err = process.communicate(timeout=240)
    lines = err.splitlines()
    assert len(lines) == 2004
    assert all(json.loads(line) for number, line in enumerate(lines) if number != 3)


def test_what_the_hub_client_says_is_told_once() -> None:
    code = (
        "import logging; from sgl_router.observability import configure_logging, flush_logs\n"
        "configure_logging('info', 'text'); import huggingface_hub\n"
        "logging.getLogger('huggingface_hub.utils._http').warning('Retrying in 1s'); flush_logs()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.stderr.splitlines() == ["Retrying in 1s"]


def test_the_fields_of_a_text_line_stand_in_the_order_in_which_they_are_looked_at() -> None:
    code = ORDER.replace("record.finish(", "record.error = BadRequest('no'); record.finish(").replace(
        "import logging\n", "import logging\nfrom sgl_router.errors import BadRequest\n", 1
    )
    done = subprocess.run([sys.executable, "-c", code, "info", "text"], capture_output=True, text=True, timeout=240)
    line = done.stderr.splitlines()[0]
    keys = [word.partition("=")[0] for word in line.split() if "=" in word]
    assert keys[:6] == ["method", "status", "ms", "code", "request_id", "model"], line
    assert line[:4].isdigit() and line.split()[1] == "[info", "the time, then the level"


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [
        ({}, True),
        ({"NO_COLOR": "1"}, False),
        ({"NO_COLOR": ""}, True),  # as no-color.org has it: present and not empty
        ({"TERM": "dumb"}, False),
    ],
)
def test_a_terminal_has_colours_unless_it_asks_for_none(environment: dict[str, str], coloured: bool) -> None:
    main, side = pty.openpty()
    clean = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    process = subprocess.Popen(
        [sys.executable, "-c", ORDER, "info", "text"],
        stderr=side,
        env={**clean, "TERM": "xterm", **environment},
    )
    os.close(side)
    said = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while piece := os.read(main, 65536):
            said += piece
    os.close(main)
    assert process.wait(timeout=240) == 0
    assert b"first" in said and b"fifth" in said
    assert (b"\x1b[" in said) is coloured
    plain = re.sub(rb"\x1b\[[0-9;]*m", b"", said)
    assert plain.index(b"method=") < plain.index(b"status=") < plain.index(b"request_id="), "one order"


INTERRUPTED = """
import signal, sys
import structlog
from sgl_router.observability import configure_logging
from sgl_router.observability.sink import LineSink

log = structlog.get_logger("x")
write = LineSink.write

def interrupted(sink, text):
    LineSink.write = write
    signal.raise_signal(signal.SIGHUP)
    return write(sink, text)

configure_logging("info", "json")
signal.signal(signal.SIGHUP, lambda number, frame: log.warning("from the handler"))
LineSink.write = interrupted
log.info("interrupted")
"""


def test_a_signals_handler_may_log_in_the_middle_of_a_line() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=120)
    assert [json.loads(line)["event"] for line in done.stderr.splitlines()] == ["from the handler", "interrupted"]
