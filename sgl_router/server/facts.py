"""What can be known of a chat before a worker is chosen: its tokens, and who holds their prefix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sgl_router.kv_events import Namespace
from sgl_router.policies import Facts, Unmatched
from sgl_router.tokenization import Unrenderable

if TYPE_CHECKING:
    from .body import JsonObject
    from .services import Model, Services

__all__ = ["gather_facts"]


async def gather_facts(services: Services, model: Model, adapter: str | None, chat: JsonObject) -> Facts:
    """Render, tokenize, hash and match. Never raises for a chat that cannot be rendered: that is a fact too."""
    if not model.policy.needs_prompt:
        return Facts(unmatched=Unmatched.NOT_ASKED)
    try:
        ids = await model.tokenizer.encode_chat(chat)
    except Unrenderable as error:
        return Facts(unmatched=Unmatched(error.reason.value))
    namespace = _namespace(chat, adapter)
    if namespace is None:
        return Facts(prompt_tokens=len(ids), unmatched=Unmatched.NAMESPACE)
    match = await services.index.match(model.id, ids, namespace)
    return Facts(match=match, ids=ids, namespace=namespace, prompt_tokens=len(ids))


def _namespace(chat: JsonObject, adapter: str | None) -> Namespace | None:
    """The part of the engine's cache a request can hit; None where the events do not tell which part that is."""
    if chat.get("extra_key"):
        return None
    salt, lora = chat.get("cache_salt"), chat.get("lora_path")
    if (salt is not None and not isinstance(salt, str)) or (lora is not None and not isinstance(lora, str)):
        return None
    return Namespace(salt or None, adapter or lora or None)
