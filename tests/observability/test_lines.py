"""The directly written line equals what structlog prints for the same fields, byte for byte."""

from __future__ import annotations

import datetime
import logging
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from sgl_router.errors import BadRequest, NoHealthyWorkers
from sgl_router.observability import RequestRecord, lines, logs
from sgl_router.observability.lines import JsonLines, TextLines
from sgl_router.outcome import Outcome
from sgl_router.placement import DecisionReason, Leg, Placement, Unmatched

ODD = ["plain", "with space", 'quo"te', "apos'trophe", "a=b", "tab\t", "new\nline", "back\\slash", "ünï", "\u2028", ""]


class Kept:
    """A sink that keeps."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, line: str, now: float) -> None:
        self.lines.append(line)


names = st.sampled_from(ODD) | st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
counts = st.integers(0, 10**7)
maybe = st.none() | counts


@st.composite
def records(draw) -> RequestRecord:
    record = RequestRecord(draw(names))
    record.model_id = draw(st.none() | names)
    record.outcome = draw(st.sampled_from(Outcome))
    record.status = draw(st.none() | st.integers(100, 599))
    record.streamed = draw(st.booleans())
    record.cached_tokens = draw(maybe)
    at = record.started_at
    if draw(st.booleans()):
        target: Any = SimpleNamespace(worker=SimpleNamespace(id="w-0123456789ab"), dp_rank=draw(counts))
        decision = Leg(
            target=target,
            reason=draw(st.sampled_from(DecisionReason)),
            candidates=draw(counts),
            min_load=draw(counts),
            max_load=draw(counts),
            matched_blocks=draw(counts),
            total_blocks=draw(counts),
            page_size=draw(counts),
            prompt_tokens=draw(maybe),
            unmatched=draw(st.none() | st.sampled_from(Unmatched)),
        )
        for _ in range(draw(st.integers(1, 3))):
            record.decided(Placement((decision,)))
        at += draw(st.floats(0, 0.05))
        record.decided_at = at
        if draw(st.booleans()):
            at += draw(st.floats(0, 700))
            record.first_byte_at = at
    record.ended_at = at + draw(st.floats(0, 700))
    if draw(st.booleans()):
        record.error = draw(st.sampled_from([BadRequest, NoHealthyWorkers]))(draw(names))
    return record


def structlogs(fmt: str, level: str, record: RequestRecord, stamp: str) -> str:
    """The line of the pipeline that `configure_logging` sets up."""
    event = {**record.fields(), "event": "request", "level": level, "timestamp": stamp}
    if fmt == "json":
        rendered = structlog.processors.JSONRenderer(serializer=logs._dumps)(None, level, event)
    else:
        rendered = structlog.dev.ConsoleRenderer(colors=False, sort_keys=False)(None, level, event)
    assert isinstance(rendered, str)
    return rendered + "\n"


def prefixes() -> dict[str, str]:
    console = structlog.dev.ConsoleRenderer(colors=False)
    return {level: logs._prefix(console, level) for level in ("info", "warning")}


@given(records(), st.sampled_from(["info", "warning"]))
def test_text(record: RequestRecord, level: str) -> None:
    sink: Any = Kept()
    made = TextLines(sink, logging.INFO, prefixes())
    made.write(record, made.info if level == "info" else made.warning)
    (line,) = sink.lines
    assert line == structlogs("text", level, record, line.split(" ", 1)[0])


@given(records(), st.sampled_from(["info", "warning"]))
def test_json(record: RequestRecord, level: str) -> None:
    sink: Any = Kept()
    made = JsonLines(sink, logging.INFO)
    made.write(record, made.info if level == "info" else made.warning)
    (line,) = sink.lines
    stamp = line.rpartition('"timestamp":"')[2].removesuffix('"}\n')
    assert line == structlogs("json", level, record, stamp)


@pytest.mark.parametrize("micros", [0, 1, 999, 1000, 123_000, 123_456, 999_999])
def test_the_time_is_isoformats(monkeypatch: pytest.MonkeyPatch, micros: int) -> None:
    seconds = 1_790_000_000
    monkeypatch.setattr(lines, "time_ns", lambda: (seconds * 1_000_000 + micros) * 1000 + 7)
    moment = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).replace(microsecond=micros)
    sink: Any = Kept()
    assert JsonLines(sink, logging.INFO)._now() == moment.isoformat().replace("+00:00", "Z")


def test_levels_that_are_not_wanted_have_no_prefix() -> None:
    sink: Any = Kept()
    made = [JsonLines(sink, level) for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)]
    assert [bool(one.info) for one in made] == [True, True, False, False]
    assert [bool(one.warning) for one in made] == [True, True, True, False]
