"""Token ids that a client sends in place of a text."""

from __future__ import annotations

from typing import Any

import numpy as np

from sgl_router.tokenization.encoders import TokenIds
from sgl_router.tokenization.errors import InvalidTokenIds, Unrenderable
from sgl_router.tokenization.fields import as_int, type_name

__all__ = ["client_ids"]


def client_ids(raw: Any, path: str, vocab_size: int) -> TokenIds:
    """Ids that a client sent, read as leniently as the engine does (5.0 and "5" are 5), but for booleans. Raises
    InvalidTokenIds naming the first that is none."""
    if isinstance(raw, np.ndarray):  # many integers, as `api/body.py` reads them
        wrong_ones = np.flatnonzero((raw < 0) | (raw >= vocab_size))
        if len(wrong_ones):
            raise _none_of_the_models(path, int(wrong_ones[0]), int(raw[wrong_ones[0]]), vocab_size)
        return raw.astype(np.uint32)
    if not isinstance(raw, list):
        raise InvalidTokenIds(path, f"must be an array of integers, got {type_name(raw)}")
    ids = raw if all(type(item) is int for item in raw) else [_id(item, f"{path}[{i}]") for i, item in enumerate(raw)]
    if ids and not (min(ids) >= 0 and max(ids) < vocab_size):
        i, wrong = next((i, item) for i, item in enumerate(ids) if not 0 <= item < vocab_size)
        raise _none_of_the_models(path, i, wrong, vocab_size)
    return np.array(ids, dtype=np.uint32)


def _none_of_the_models(path: str, index: int, wrong: int, vocab_size: int) -> InvalidTokenIds:
    shown = str(wrong) if abs(wrong) < 10**18 else "the number"
    problem = f"{shown} is no token id of this model; expected 0 to {vocab_size - 1}"
    return InvalidTokenIds(f"{path}[{index}]", problem)


def _id(item: Any, path: str) -> int:
    if not isinstance(item, bool):
        try:
            return as_int(item, path)
        except Unrenderable:
            pass
    raise InvalidTokenIds(path, f"must be an integer, got {type_name(item)}")
