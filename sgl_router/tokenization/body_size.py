"""Whether a piece of a decoded body is too large to be worked through on the event loop."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["exceeds"]


def exceeds(value: Any, *, nodes: int, chars: int) -> bool:
    """True once more than `nodes` JSON values or `chars` characters are seen inside; the walk stops there."""
    pending: list[Any] = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            chars -= len(item)
            if chars < 0:
                return True
        elif isinstance(item, (dict, list)):
            nodes -= len(item)
            if nodes < 0:
                return True
            pending.extend(item.values() if isinstance(item, dict) else item)
        elif isinstance(item, np.ndarray):
            nodes -= len(item)
            if nodes < 0:
                return True
    return False
