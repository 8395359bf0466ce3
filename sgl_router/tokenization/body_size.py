"""Whether a chat body is too large to be normalised and rendered on the event loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["exceeds"]

_RENDERED_KEYS = ("messages", "tools", "chat_template_kwargs", "input_ids")


def exceeds(body: Mapping[str, Any], *, nodes: int, chars: int) -> bool:
    """True once more than `nodes` JSON values or `chars` characters are seen; the walk stops there."""
    pending: list[Any] = [body[key] for key in _RENDERED_KEYS if key in body]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            chars -= len(value)
            if chars < 0:
                return True
        elif isinstance(value, (dict, list)):
            nodes -= len(value)
            if nodes < 0:
                return True
            pending.extend(value.values() if isinstance(value, dict) else value)
    return False
