"""`GET /v1/models` and `/v1/models/{id}`: the configured models that some healthy worker serves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from sgl_router.errors import ModelNotFound
from sgl_router.http.answer import send_json

if TYPE_CHECKING:
    from sgl_router.http import ResponseWriter
    from sgl_router.http.request import Request
    from sgl_router.services import Model, Services

__all__ = ["MODELS_PATH", "serve_model", "serve_models"]

MODELS_PATH = "/v1/models"


async def serve_models(services: Services, request: Request, writer: ResponseWriter) -> None:
    """OpenAI's list."""
    await send_json(writer, {"object": "list", "data": [_entry(services, model) for model in _served(services)]})


async def serve_model(services: Services, request: Request, writer: ResponseWriter) -> None:
    """One entry of that list. Raises ModelNotFound for what is not in it."""
    name = unquote(request.path.removeprefix(MODELS_PATH + "/"), errors="replace")
    served = {model.id: model for model in _served(services)}
    if name not in served:
        raise ModelNotFound(f"model {name[:200]!r} is not served here; served models: {sorted(served)}", "model")
    await send_json(writer, _entry(services, served[name]))


def _served(services: Services) -> Iterator[Model]:
    now = time.monotonic()
    for model in services.models.values():
        if any(worker.serves(now) for worker in services.registry.for_model(model.id)):
            yield model


def _entry(services: Services, model: Model) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "id": model.id,
        "object": "model",
        "created": int(services.started_at),
        "owned_by": "sglang",
        "root": model.id,
    }
    if model.tokenizer.max_model_len is not None:
        entry["max_model_len"] = model.tokenizer.max_model_len
    return entry
