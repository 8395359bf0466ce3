"""`POST /v1/tokenize` and `/v1/detokenize`, answered by the router itself in the engine's shapes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from sgl_router.errors import BadRequest, RouterError
from sgl_router.proxy import Outbound
from sgl_router.tokenization import TokenizeBadRequest, Unrenderable, detokenize_request, tokenize_request

from .body import JsonObject, parse_object
from .envelope import error_response

if TYPE_CHECKING:
    from sgl_router.tokenization import ModelTokenizer

    from .inbound import Inbound
    from .services import Services

__all__ = ["serve_detokenize", "serve_tokenize"]

_Answer = Callable[["ModelTokenizer", Mapping[str, Any]], Awaitable[dict[str, Any]]]


async def serve_tokenize(services: Services, inbound: Inbound, out: Outbound) -> None:
    await _serve(services, inbound, out, tokenize_request)


async def serve_detokenize(services: Services, inbound: Inbound, out: Outbound) -> None:
    await _serve(services, inbound, out, detokenize_request)


async def _serve(services: Services, inbound: Inbound, out: Outbound, answer: _Answer) -> None:
    try:
        body = parse_object(inbound.body)
        tokenizer = _tokenizer(services, body)
        try:
            reply = await answer(tokenizer, body)
        except TokenizeBadRequest as error:
            where = f"'{error.param}': " if error.param else ""
            raise BadRequest(f"{where}{error.message}", error.param) from None
        except Unrenderable as error:
            raise BadRequest(f"only a worker can encode this chat: {error.message}", error.param) from None
    except RouterError as error:
        services.metrics.errors.labels(error.code.value).inc()
        await out.send(*error_response(error))
        return
    await out.send(200, [(b"content-type", b"application/json")], msgspec.json.encode(reply))


def _tokenizer(services: Services, body: JsonObject) -> ModelTokenizer:
    name = body.get("model")
    if name is None:
        if len(services.models) == 1:
            return next(iter(services.models.values())).tokenizer
        raise BadRequest(f"'model' is missing; expected one of {sorted(services.models)}", "model")
    if not isinstance(name, str):
        raise BadRequest("'model' is not a string; expected a model id", "model")
    return services.model(name)[0].tokenizer
