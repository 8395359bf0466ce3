"""Log set-up: one line per event on standard error, text for people, JSON for machines."""

from __future__ import annotations

import logging
import sys
from typing import Any

import msgspec
import structlog

__all__ = ["configure_logging"]


def configure_logging(level: str, fmt: str) -> None:
    """`level`: debug, info, warning or error. `fmt`: `text` (coloured on a terminal) or `json`."""
    number = getattr(logging, level.upper())
    logging.basicConfig(format="%(message)s", stream=sys.stderr, level=max(number, logging.WARNING), force=True)
    # Each malformed request would otherwise be a traceback; what it was answered is counted.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    if fmt == "json":
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_dumps)]
    else:
        # Plain tracebacks: the rich ones print local variables, and among those are keys.
        colors, plain = sys.stderr.isatty(), structlog.dev.plain_traceback
        processors.append(structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain))
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


def _dumps(event: dict[str, Any], default: Any = None, **_: Any) -> str:
    return msgspec.json.encode(event, enc_hook=lambda value: repr(value)).decode()
