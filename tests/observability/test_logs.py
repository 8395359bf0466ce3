from __future__ import annotations

import json
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
    done = subprocess.run([sys.executable, "-c", CODE, level, fmt], capture_output=True, text=True, timeout=60)
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
