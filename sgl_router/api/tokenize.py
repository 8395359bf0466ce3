"""`POST /v1/tokenize` and `/v1/detokenize`, answered by the router itself in the engine's shapes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from sgl_router.api.body import JsonObject, read_json
from sgl_router.api.json_slices import READ_BYTES
from sgl_router.errors import BadRequest, RouterError
from sgl_router.http import ResponseWriter
from sgl_router.http.envelope import error_response
from sgl_router.tokenization import TokenizeBadRequest, Unrenderable, detokenize_request, tokenize_request

if TYPE_CHECKING:
    from sgl_router.http.request import Request
    from sgl_router.services import Services
    from sgl_router.tokenization import ModelTokenizer

__all__ = ["serve_detokenize", "serve_tokenize"]

_LARGE_BYTES = 64 << 10
_INLINE_SIZE = 4_096
_SLICE_IDS = 16_384

_Answer = Callable[["ModelTokenizer", Mapping[str, Any]], Awaitable[dict[str, Any]]]


async def serve_tokenize(services: Services, request: Request, writer: ResponseWriter) -> None:
    await _serve(services, request, writer, tokenize_request)


async def serve_detokenize(services: Services, request: Request, writer: ResponseWriter) -> None:
    await _serve(services, request, writer, detokenize_request)


async def _serve(services: Services, request: Request, writer: ResponseWriter, answer: _Answer) -> None:
    try:
        body = await read_json(request.body)
        for name in body.unread:
            raise BadRequest(f"{name!r} is larger than the limit of {READ_BYTES} bytes", name)
        tokenizer = _tokenizer(services, body)
        try:
            reply = await answer(tokenizer, body)
        except TokenizeBadRequest as error:
            where = f"'{error.param}': " if error.param else ""
            raise BadRequest(f"{where}{error.message}", error.param) from None
        except Unrenderable as error:
            raise BadRequest(f"only a worker can encode this chat: {error.message}", error.param) from None
        encoded = await _encoded(tokenizer, reply)
        if len(encoded) > _LARGE_BYTES:
            request.charge(len(encoded))  # six times the body, where each character is a token
    except RouterError as error:
        services.metrics.errors.labels(error.code.value).inc()
        await writer.send(*error_response(error))
        return
    await writer.send(200, [(b"content-type", b"application/json")], encoded)


async def _encoded(tokenizer: ModelTokenizer, reply: dict[str, Any]) -> bytes:
    size = reply["count"] if "count" in reply else len(reply["text"])
    if isinstance(size, int) and size <= _INLINE_SIZE:
        return msgspec.json.encode(reply, enc_hook=_ids)
    return await tokenizer.offload(lambda: msgspec.json.encode(reply, enc_hook=_ids))


def _ids(value: Any) -> msgspec.Raw:
    """A long sequence of token ids, in slices: the interpreter is not held by one of millions."""
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{type(value).__name__} is no part of a reply")
    parts = [
        msgspec.json.encode(value[start : start + _SLICE_IDS].tolist())[1:-1]
        for start in range(0, len(value), _SLICE_IDS)
    ]
    return msgspec.Raw(b"[%b]" % b",".join(parts))


def _tokenizer(services: Services, body: JsonObject) -> ModelTokenizer:
    name = body.get("model")
    if name is None:
        if len(services.models) == 1:
            return next(iter(services.models.values())).tokenizer
        raise BadRequest(f"'model' is missing; expected one of {sorted(services.models)}", "model")
    if not isinstance(name, str):
        raise BadRequest("'model' is not a string; expected a model id", "model")
    return services.model(name)[0].tokenizer
