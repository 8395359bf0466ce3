"""`GET /internal/decisions`: the last decisions, and why they were taken."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from sgl_router.errors import BadRequest
from sgl_router.http.answer import send_json
from sgl_router.routing.views import lease_view

if TYPE_CHECKING:
    from sgl_router.http import ResponseWriter
    from sgl_router.http.request import Request
    from sgl_router.http.routes import Serve
    from sgl_router.routing import DecisionLog
    from sgl_router.services import Services

__all__ = ["MAX_DECISIONS", "decisions_route"]

MAX_DECISIONS = 1_000
_DEFAULT_LIMIT = 100


def decisions_route(decisions: DecisionLog) -> Serve:
    async def serve(services: Services, request: Request, writer: ResponseWriter) -> None:
        """Newest first; `?limit=` says how many. Raises BadRequest."""
        found = decisions.last(_limit(request.query))
        await send_json(writer, {"decisions": [lease_view(lease) for lease in found]})

    return serve


def _limit(query: bytes) -> int:
    given = parse_qs(query.decode("latin-1"), keep_blank_values=True).get("limit")
    if given is None:
        return _DEFAULT_LIMIT
    text = given[0]
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MAX_DECISIONS:
        raise BadRequest(f"limit is {text[:50]!r}, expected a number from 1 to {MAX_DECISIONS}", "limit")
    return int(text)
