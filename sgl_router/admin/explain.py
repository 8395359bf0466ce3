"""`POST /internal/explain`: where a chat would be sent now, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sgl_router.api.body import read_chat
from sgl_router.api.chat import route_request
from sgl_router.http.answer import send_json

if TYPE_CHECKING:
    from sgl_router.http import ResponseWriter
    from sgl_router.http.request import Request
    from sgl_router.services import Services

__all__ = ["serve_explain"]


async def serve_explain(services: Services, request: Request, writer: ResponseWriter) -> None:
    """Nothing is sent to a worker. Raises what a chat completion would be refused with."""
    chat = await read_chat(request.body)
    model, adapter = services.model(chat["model"])
    asked = await route_request(model, adapter, chat, request.headers, request.request_id)
    view = await services.routing.explain(asked)
    await send_json(writer, {"model": model.id, "policy": model.config.policy.value, **view})
