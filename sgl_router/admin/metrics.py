"""`GET /metrics`: everything that is counted, for Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sgl_router.observability.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from sgl_router.http import ResponseWriter
    from sgl_router.http.request import Request
    from sgl_router.services import Services

__all__ = ["serve_metrics"]

_HEADERS = [(b"content-type", CONTENT_TYPE.encode("ascii"))]


async def serve_metrics(services: Services, request: Request, writer: ResponseWriter) -> None:
    await writer.send(200, _HEADERS, await services.metrics.render_aside())
