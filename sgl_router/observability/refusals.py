"""The log line of a request that the router refused before it had a record: by its head, route, method or size."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

import structlog

from sgl_router.observability import logs
from sgl_router.outcome import Outcome

if TYPE_CHECKING:
    from sgl_router.errors import RouterError

__all__ = ["log_refusal", "shown_path"]

log = structlog.get_logger("sgl_router.request")

MAX_SHOWN = 100
_MAX_METHOD = 20


def log_refusal(error: RouterError, request_id: str | None, method: str, target: bytes | str) -> None:
    """One line, with the fields of a request's line as far as there are any. `target` as it came: a request's target,
    or the first line of what could not be read as a request. Never raises."""
    try:
        if isinstance(target, bytes) and method == "other":
            method, target = _announced(target)
        fields: dict[str, object] = {"method": _shown(method, _MAX_METHOD), "path": shown_path(target)}
        fields |= {"status": error.status, "code": error.code.value}
        if request_id is not None:
            fields["request_id"] = request_id
        outcome = Outcome.REJECTED if error.status != 500 else Outcome.INTERNAL
        fields |= {"outcome": outcome.value, "error": error.message}
        lines, quiet = logs.requests, outcome is Outcome.REJECTED
        if lines is None:
            (log.info if quiet else log.warning)("request", **fields)
        elif level := lines.info if quiet else lines.warning:
            lines.write_fields(fields, level, perf_counter())
    except Exception:
        log.exception("refused request could not be logged")


def shown_path(target: bytes | str) -> str:
    """At most 100 characters of it, printable ASCII, without the query: that may hold keys."""
    text = target[:MAX_SHOWN].decode("latin-1") if isinstance(target, bytes) else target
    return _shown(text.partition("?")[0], MAX_SHOWN)


def _shown(text: str, most: int) -> str:
    """An escaped character may make it a little longer than `most`."""
    return text[:most].encode("unicode_escape").decode("ascii")


def _announced(data: bytes) -> tuple[str, bytes]:
    """Method and target of what begins like a request; else its first line whole, as the target."""
    line = data[: MAX_SHOWN + _MAX_METHOD].partition(b"\n")[0].rstrip(b"\r")
    method, _, rest = line.partition(b" ")
    if rest and method.isalpha() and len(method) <= _MAX_METHOD:
        return method.decode("ascii"), rest.partition(b" ")[0]
    return "other", line
