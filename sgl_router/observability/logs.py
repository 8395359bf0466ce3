"""Log set-up: one line per event on standard error, text for people, JSON for machines."""

from __future__ import annotations

import atexit
import logging
import os
import sys
from typing import Any, TextIO, cast

import msgspec
import structlog

from sgl_router.observability.lines import JsonLines, TextLines
from sgl_router.observability.sink import LineSink

__all__ = ["configure_logging", "flush_logs", "take_lost_lines"]

requests: JsonLines | TextLines | None = None
"""Writes the lines of requests; None where they go through structlog."""
_sink: LineSink | None = None


def configure_logging(level: str, fmt: str) -> None:
    """`level`: debug, info, warning or error. `fmt`: `text` or `json`. Text is coloured on a terminal, unless the
    environment has a NO_COLOR that is not empty, or says that the terminal is dumb."""
    global requests, _sink
    if _sink is not None:
        _sink.close()
    sink = _sink = LineSink(sys.stderr)
    stream = cast(TextIO, sink)
    number = getattr(logging, level.upper())
    logging.basicConfig(format="%(message)s", stream=stream, level=max(number, logging.WARNING), force=True)
    # The hub's client brings a handler of its own: what it says would be told twice.
    logging.getLogger("huggingface_hub").propagate = False
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    colors = sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    if fmt == "json":
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_dumps)]
        requests = JsonLines(sink, number)
    else:
        # Plain tracebacks: the rich ones print local variables, and among those are keys.
        plain = structlog.dev.plain_traceback
        # Fields in the order in which they are given: what is looked at first stands first.
        console = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain, sort_keys=False)
        processors.append(console)
        requests = None if colors else TextLines(sink, number, {name: _prefix(console, name) for name in _LEVELS})
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_: _Lines(sink),
        cache_logger_on_first_use=True,
    )


def flush_logs() -> None:
    """Write the lines that are still held."""
    if _sink is not None:
        _sink.flush()


def take_lost_lines() -> int:
    """How many lines could not be written since this was last asked."""
    if _sink is None:
        return 0
    lost, _sink.lost = _sink.lost, 0
    return lost


class _Lines:
    """Takes finished lines from structlog. Its own loggers hold a lock meanwhile, on which a handler of a signal that
    logs in the middle of a line would wait for ever."""

    __slots__ = ("_sink",)

    def __init__(self, sink: LineSink) -> None:
        self._sink = sink

    def msg(self, line: str) -> None:
        self._sink.write(line + "\n")

    debug = info = warning = error = critical = exception = msg


_LEVELS = ("info", "warning")


def _prefix(console: structlog.dev.ConsoleRenderer, level: str) -> str:
    """What this structlog prints between the time and the first field."""
    line = console(None, level, {"timestamp": "", "level": level, "event": "request", "key": 0})
    return " " + line.removesuffix("key=0").lstrip()


def _dumps(event: dict[str, Any], default: Any = None, **_: Any) -> str:
    return msgspec.json.encode(event, enc_hook=lambda value: repr(value)).decode()


@atexit.register
def _close() -> None:
    if _sink is not None:
        _sink.close()


def _forked() -> None:
    if _sink is not None:
        _sink.forked()


os.register_at_fork(after_in_child=_forked)
