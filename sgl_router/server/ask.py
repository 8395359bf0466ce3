"""What can be known of a chat before a worker is chosen: its tokens, and the part of the cache it can hit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sgl_router.kv_events import DEFAULT_NAMESPACE, Namespace
from sgl_router.policies import Unmatched
from sgl_router.routing import Ask
from sgl_router.tokenization import Unrenderable

if TYPE_CHECKING:
    from .body import JsonObject
    from .services import Model

__all__ = ["make_ask"]


async def make_ask(model: Model, adapter: str | None, chat: JsonObject) -> Ask:
    """Render and tokenize. Never raises for a chat that cannot be rendered: that is a fact too."""
    if not model.policy.needs_prompt:
        return Ask(model.id, unmatched=Unmatched.NOT_ASKED)
    try:
        prompt = await model.tokenizer.prompt(chat)
    except Unrenderable as error:
        return Ask(model.id, unmatched=Unmatched(error.reason.value))
    namespace = _namespace(chat, adapter)
    return Ask(
        model.id,
        prompt=prompt,
        namespace=namespace,
        unmatched=Unmatched.NAMESPACE if namespace is None else None,
    )


def _namespace(chat: JsonObject, adapter: str | None) -> Namespace | None:
    """The part of the engine's cache a request can hit; None where the events do not tell which part that is."""
    if adapter is None and not ("extra_key" in chat or "cache_salt" in chat or "lora_path" in chat):
        return DEFAULT_NAMESPACE
    if chat.get("extra_key"):
        return None
    salt, lora = chat.get("cache_salt"), chat.get("lora_path")
    if (salt is not None and not isinstance(salt, str)) or (lora is not None and not isinstance(lora, str)):
        return None
    return Namespace(salt or None, adapter or lora or None)
