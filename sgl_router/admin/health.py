"""`GET /healthz`, `/health`: the process is alive. `GET /readyz`: it should be sent requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sgl_router.http.answer import send_json

if TYPE_CHECKING:
    from sgl_router.http import ResponseWriter
    from sgl_router.http.request import Request
    from sgl_router.services import Services

__all__ = ["serve_liveness", "serve_readiness"]


async def serve_liveness(services: Services, request: Request, writer: ResponseWriter) -> None:
    await send_json(writer, {"status": "ok"})


async def serve_readiness(services: Services, request: Request, writer: ResponseWriter) -> None:
    """200 while every model has a healthy worker, else 503 with the reasons."""
    reasons = services.unready()
    if reasons:
        await send_json(writer, {"status": "not ready", "reasons": reasons}, 503)
    else:
        await send_json(writer, {"status": "ready"})
