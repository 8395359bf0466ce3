"""What can be known of a chat before a worker is chosen: its tokens, and the part of the cache it can hit."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sgl_router.config import PolicyName
from sgl_router.errors import BadRequest
from sgl_router.kv_events import DEFAULT_NAMESPACE, Namespace
from sgl_router.placement import Unmatched
from sgl_router.routing import Ask
from sgl_router.routing.conduct import UNRENDERABLE
from sgl_router.tokenization import InvalidTokenIds, Unrenderable

from .body import parse_chat

if TYPE_CHECKING:
    from sgl_router.proxy import Headers

    from .body import JsonObject
    from .services import Model

__all__ = ["is_unrenderable", "make_ask"]

_PRIORITY_HEADER = b"x-smg-priority"
# As the SGLang Model Gateway names them.
_CLASSES = {"bulk": -1, "default": 0, "interactive": 1, "system": 2}
_NUMBER = re.compile(r"[+-]?[0-9]{1,9}")
# JSON has numbers of any length, other processes' messages have not.
_MOST = 10**9
_MAX_HEADER = 256
# Bodies are large, and names are remembered (by `BlockHasher`) and told to other processes.
_MAX_NAME = 4_096


async def make_ask(model: Model, adapter: str | None, chat: JsonObject, headers: Headers, request_id: str) -> Ask:
    """Render and tokenize. A chat that cannot be rendered is no error: that is a fact too. Raises BadRequest for token
    ids that are none of the model's."""
    ask = Ask(model.id, request_id)
    if chat.unread:
        ask.unmatched = Unmatched.TOO_LONG if model.policy.needs_prompt else Unmatched.NOT_ASKED
        return _costs(model, ask, chat, headers)
    try:
        if not model.policy.needs_prompt:
            ask.unmatched = Unmatched.NOT_ASKED
            if "input_ids" in chat:
                await model.tokenizer.check_ids(chat)
            return ask
        ask.prompt = await model.tokenizer.prompt(chat)
    except InvalidTokenIds as error:
        raise BadRequest(error.message, error.param) from None
    except Unrenderable as error:
        ask.unmatched = Unmatched(error.reason.value)
    else:
        ask.namespace = _namespace(chat, adapter)
        if ask.namespace is None:
            ask.unmatched = Unmatched.NAMESPACE
    return _costs(model, ask, chat, headers)


def _costs(model: Model, ask: Ask, chat: JsonObject, headers: Headers) -> Ask:
    """What only `kv_cost` goes by."""
    if model.config.policy is PolicyName.KV_COST:
        ask.costed = True
        ask.streamed = "stream" in chat and chat["stream"] is True
        if model.config.queue.enabled and model.config.queue.priorities:
            ask.priority = _priority(chat, headers)
        if model.config.kv_cost.session_bonus_ms:
            ask.session = _header(headers, model.session_header)
    return ask


async def is_unrenderable(model: Model, body: bytes) -> bool:
    """Whether a chat is one that the router cannot render for a fault in it. For one that was not rendered, as its
    policy does not look at prompts, and has failed: is the worker to blame?"""
    try:
        await model.tokenizer.prompt(parse_chat(body))
    except Unrenderable as error:
        return Unmatched(error.reason.value) in UNRENDERABLE
    return False


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
