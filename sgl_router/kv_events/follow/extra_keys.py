"""vLLM's extra keys: what else than its tokens a block's hash was made of, as a list per block, or null.

The list holds the adapter (LoRA) on every block, hashes of media where there are some, and the request's salt on a
prompt's first block. Adapter and salt name a namespace; of anything else the router cannot tell which requests have
the same. What cannot be told is left out, with every block behind it: those have it in their prefix.
"""

from __future__ import annotations

from typing import Any

__all__ = ["told_apart"]


def told_apart(
    extra_keys: Any, blocks: int, *, first: bool, lora_id: Any, lora_name: str | None
) -> tuple[int, str | None]:
    """How many leading blocks of a chain have a namespace that can be told, and its salt.

    `first`: the chain begins with a prompt's first block. Where a string there is a medium's hash (versions before
    those that list media as pairs) it passes for a salt that no request has, which claims nothing.
    """
    if lora_id is not None and lora_name is None:
        return 0, None  # an adapter without its name
    if extra_keys is None or (isinstance(extra_keys, list) and not any(extra_keys)):
        return blocks, None
    if not isinstance(extra_keys, list) or len(extra_keys) != blocks:
        return 0, None
    salt: str | None = None
    for index, keys in enumerate(extra_keys):
        if not keys:
            continue
        if not isinstance(keys, list):
            return index, salt
        rest = keys[1:] if lora_name is not None and keys[0] == lora_name else keys
        if not rest:
            continue
        if index or not first or len(rest) > 1 or not isinstance(rest[0], str):
            return index, salt
        salt = rest[0]
    return blocks, salt
