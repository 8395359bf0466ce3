"""`POST /v1/chat/completions`: how its body is read, and what of its prompt can be known before a worker is chosen."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import xxhash

from sgl_router.api.body import parse_chat, read_chat
from sgl_router.api.exchange import Endpoint, Exchange
from sgl_router.api.pipeline import pipeline
from sgl_router.errors import BadRequest
from sgl_router.kv_events import DEFAULT_NAMESPACE, Namespace
from sgl_router.placement import Unmatched
from sgl_router.routing import RouteRequest
from sgl_router.routing.conduct import UNRENDERABLE
from sgl_router.tokenization import InvalidTokenIds, Unrenderable

if TYPE_CHECKING:
    from sgl_router.api.body import JsonObject
    from sgl_router.http import Headers
    from sgl_router.prompt import Prompt
    from sgl_router.services import Model

__all__ = ["is_unrenderable", "route_request", "serve_chat"]

_PRIORITY_HEADER = b"x-smg-priority"
# As the SGLang Model Gateway names them.
_CLASSES = {"bulk": -1, "default": 0, "interactive": 1, "system": 2}
_NUMBER = re.compile(r"[+-]?[0-9]{1,9}")
# JSON has numbers of any length, other processes' messages have not.
_MOST = 10**9
_MAX_HEADER = 256
# Bodies are large, and names are remembered (by `BlockHasher`) and told to other processes.
_MAX_NAME = 4_096


async def route_request(
    model: Model,
    adapter: str | None,
    chat: JsonObject,
    headers: Headers,
    request_id: str,
    fingerprint: int | None = None,
) -> RouteRequest:
    """Render and tokenize. A chat that cannot be rendered is no error: that is a fact too. Raises BadRequest for token
    ids that are none of the model's."""
    policy, config = model.policy, model.config
    prompt, namespace, unmatched = await _prompt(model, adapter, chat)
    if policy.prefill_tokens_per_sec is None:
        return RouteRequest(
            model_id=model.id,
            request_id=request_id,
            prompt=prompt,
            namespace=namespace,
            unmatched=unmatched,
            fingerprint=fingerprint,
        )
    return RouteRequest(
        model_id=model.id,
        request_id=request_id,
        prompt=prompt,
        namespace=namespace,
        unmatched=unmatched,
        fingerprint=fingerprint,
        wants_usage=True,
        streamed="stream" in chat and chat["stream"] is True,
        priority=_priority(chat, headers) if config.queue.enabled and config.queue.priorities else 0,
        session=_header(headers, model.session_header) if policy.needs_session else None,
    )


async def _prompt(
    model: Model, adapter: str | None, chat: JsonObject
) -> tuple[Prompt | None, Namespace | None, Unmatched | None]:
    """The prompt and the part of the cache it can hit, or why they are not known."""
    needed = model.policy.needs_prompt
    if chat.unread:
        return None, None, Unmatched.TOO_LONG if needed else Unmatched.NOT_ASKED
    try:
        if not needed:
            if "input_ids" in chat:
                await model.tokenizer.check_ids(chat)
            return None, None, Unmatched.NOT_ASKED
        prompt = await model.tokenizer.prompt(chat)
    except InvalidTokenIds as error:
        raise BadRequest(error.message, error.param) from None
    except Unrenderable as error:
        return None, None, Unmatched(error.reason.value)
    namespace = _namespace(chat, adapter)
    return prompt, namespace, Unmatched.NAMESPACE if namespace is None else None


async def is_unrenderable(model: Model, body: bytes) -> bool:
    """Whether a chat is one that the router cannot render for a fault in it. For one that was not rendered, as its
    policy does not look at prompts, and has failed: is the worker to blame?"""
    try:
        await model.tokenizer.prompt(parse_chat(body))
    except Unrenderable as error:
        return Unmatched(error.reason.value) in UNRENDERABLE
    return False


async def _prepare(exchange: Exchange, chat: JsonObject) -> RouteRequest:
    request = exchange.request
    fingerprint = xxhash.xxh3_64_intdigest(request.body)
    return await route_request(exchange.model, exchange.adapter, chat, request.headers, request.request_id, fingerprint)


serve_chat = pipeline(Endpoint(read_chat, _prepare, is_unrenderable))


def _priority(chat: JsonObject, headers: Headers) -> int:
    """The body's number, else the header's class or number. What is neither is no reason to refuse a request here."""
    stated = chat.get("priority")
    if isinstance(stated, int) and not isinstance(stated, bool):
        return max(-_MOST, min(stated, _MOST))
    text = (_header(headers, _PRIORITY_HEADER) or "").strip().lower()
    if text in _CLASSES:
        return _CLASSES[text]
    return int(text) if _NUMBER.fullmatch(text) else 0


def _header(headers: Headers, wanted: bytes) -> str | None:
    for name, value in headers:
        if len(name) == len(wanted) and name.lower() == wanted:
            return value.decode("latin-1")[:_MAX_HEADER] or None
    return None


def _namespace(chat: JsonObject, adapter: str | None) -> Namespace | None:
    """The part of the engine's cache a request can hit; None where the events do not tell which part that is."""
    if adapter is None and not ("extra_key" in chat or "cache_salt" in chat or "lora_path" in chat):
        return DEFAULT_NAMESPACE
    if chat.get("extra_key"):
        return None
    salt, lora = chat.get("cache_salt"), chat.get("lora_path")
    if (salt is not None and not isinstance(salt, str)) or (lora is not None and not isinstance(lora, str)):
        return None
    lora = adapter or lora
    if len(salt or "") > _MAX_NAME or len(lora or "") > _MAX_NAME:
        return None
    return Namespace(salt or None, lora or None)
