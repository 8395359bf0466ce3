"""What a chat template is given for requests that do not give it themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from sgl_router.config.errors import Rejected, show

_EXPECTED = "a mapping of chat template variables, like {enable_thinking: false}"
# The engine passes these to every rendering itself: with a default of the same name each of its chats fails.
_SET_BY_THE_ENGINE = frozenset(
    {
        "add_generation_prompt",
        "conversation",
        "conversations",
        "messages",
        "return_dict",
        "self",
        "tokenize",
        "tools",
    }
)
_MAX_DEPTH = 32


def parse_template_kwargs(value: object) -> dict[str, Any]:
    """The workers' --default-chat-template-kwargs, as JSON has it; raises Rejected."""
    if isinstance(value, str):
        raise Rejected(_EXPECTED, "the object itself, not a string that holds it: no quotes around it")
    if not isinstance(value, Mapping):
        raise Rejected(_EXPECTED)
    for key, item in value.items():
        if not isinstance(key, str):
            raise Rejected(_EXPECTED, f"the name {show(key)} is no string: quote it", shown="a mapping")
        if key in _SET_BY_THE_ENGINE:
            raise Rejected("the name of a template variable", f"{key} is set by the engine itself", key=key)
        if key == "chat_template":
            raise Rejected("the name of a template variable", "a template goes into chat_template, beside", key=key)
        if not (_is_json(key) and _is_json(item)):
            raise Rejected("what JSON can hold", "quote it to make it a string", key=key)
    return dict(value)


def _is_json(value: object, depth: int = 0) -> bool:
    """Whether `value` is the same once it was written as JSON and read again: no dates, no infinities."""
    if depth > _MAX_DEPTH:
        return False
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_json(key) and _is_json(item, depth + 1) for key, item in value.items())
    if isinstance(value, list):
        return all(_is_json(item, depth + 1) for item in value)
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return -(1 << 63) <= value < 1 << 64
    if isinstance(value, str):
        return not any("\ud800" <= char <= "\udfff" for char in value)
    return value is None or isinstance(value, bool)
