"""KV events on the wire: each engine version's own shape, granularity and msgpack layout."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import msgspec

from sgl_router.lab.mock_worker.config import Dialect
from sgl_router.lab.mock_worker.ops import BlocksRemoved, BlocksStored, CacheCleared, CacheOp, Medium

_PER_PAGE_STORES = frozenset({Dialect.LEGACY, Dialect.MEDIUM, Dialect.ARRAY17})
_VLLM = frozenset({Dialect.VLLM, Dialect.VLLM_HYBRID})
_PER_PAGE_REMOVALS = frozenset({Dialect.LEGACY, Dialect.MEDIUM}) | _VLLM
_TAGGED_MAPS = frozenset({Dialect.MAP, Dialect.MAP_LORA}) | _VLLM
# A hybrid model's groups, in the order of its layers.
_WINDOW_GROUP, _FULL_GROUP, _STATE_GROUP = range(3)
_WINDOW_BLOCKS = 2

_encoder = msgspec.msgpack.Encoder()


def encode_batch(events: list[Any], *, timestamp: float, rank: int) -> bytes:
    """The published payload: a positional array whatever the dialect."""
    return _encoder.encode([timestamp, events, rank])


def encode_events(ops: Iterable[CacheOp], dialect: Dialect) -> list[Any]:
    """The events one flush of `ops` publishes in a dialect."""
    if dialect is Dialect.VLLM_HYBRID:
        return [event for op in _regroup(ops, dialect) for event in _as_hybrid(op)]
    encode = _as_map if dialect in _TAGGED_MAPS else _as_array
    return [encode(op, dialect) for op in _regroup(ops, dialect)]


def in_medium(events: list[Any], medium: str) -> list[Any]:
    """The same events with another medium, where they have one."""
    told: list[Any] = []
    for event in events:
        if isinstance(event, dict):
            told.append({**event, "medium": medium} if "medium" in event else event)
        else:
            place = {"BlockStored": 6, "BlockRemoved": 2}.get(event[0], len(event))
            told.append([*event[:place], medium, *event[place + 1 :]] if place < len(event) else event)
    return told


def _regroup(ops: Iterable[CacheOp], dialect: Dialect) -> Iterator[CacheOp]:
    """Split or merge cache operations into the events an engine of that age sends."""
    held: CacheOp | None = None
    for op in _split(ops, dialect):
        if held is not None:
            merged = _merge(held, op) if _coalesces(dialect, op) else None
            if merged is not None:
                held = merged
                continue
            yield held
        held = op
    if held is not None:
        yield held


def _coalesces(dialect: Dialect, op: CacheOp) -> bool:
    if isinstance(op, BlocksStored):
        return dialect not in _PER_PAGE_STORES
    return dialect not in _PER_PAGE_REMOVALS and dialect is not Dialect.ARRAY17


def _split(ops: Iterable[CacheOp], dialect: Dialect) -> Iterator[CacheOp]:
    for op in ops:
        if dialect is Dialect.LEGACY and not isinstance(op, CacheCleared) and op.medium is not Medium.GPU:
            continue  # these versions publish no host tier
        if isinstance(op, BlocksStored) and dialect in _PER_PAGE_STORES:
            yield from _pages(op)
        elif isinstance(op, BlocksRemoved) and dialect in _PER_PAGE_REMOVALS:
            yield from (replace(op, hashes=(block,)) for block in op.hashes)
        else:
            yield op


def _pages(op: BlocksStored) -> Iterator[BlocksStored]:
    parent = op.parent
    for index, block in enumerate(op.hashes):
        start = index * op.page_size
        yield replace(op, hashes=(block,), parent=parent, units=op.units[start : start + op.page_size])
        parent = block


def _merge(first: CacheOp, second: CacheOp) -> CacheOp | None:
    """One event for two, or None when they cannot be one."""
    if isinstance(first, BlocksRemoved) and isinstance(second, BlocksRemoved):
        if first.medium is second.medium:
            return replace(first, hashes=first.hashes + second.hashes)
        return None
    if not isinstance(first, BlocksStored) or not isinstance(second, BlocksStored):
        return None
    same = (
        first.medium is second.medium
        and first.page_size == second.page_size
        and first.namespace.cache_salt == second.namespace.cache_salt
        and first.namespace.lora_name == second.namespace.lora_name
        and first.session_id == second.session_id
        and first.hashes[-1] == second.parent
    )
    if not same:
        return None
    return replace(first, hashes=first.hashes + second.hashes, units=first.units + second.units)


def _as_array(op: CacheOp, dialect: Dialect) -> list[Any]:
    if isinstance(op, CacheCleared):
        return ["AllBlocksCleared"]
    medium = [] if dialect is Dialect.LEGACY else [op.medium.value]
    if isinstance(op, BlocksRemoved):
        return ["BlockRemoved", op.hashes, *medium]
    event: list[Any] = ["BlockStored", op.hashes, op.parent, op.units, op.page_size, None, *medium]
    if dialect is Dialect.SALT_ARRAY and op.namespace.cache_salt is not None:
        event.append({"cache_salt": op.namespace.cache_salt})
    return event


def _as_map(op: CacheOp, dialect: Dialect) -> dict[str, Any]:
    if dialect is Dialect.VLLM:
        return _as_vllm(op)
    if isinstance(op, CacheCleared):
        return {"type": "AllBlocksCleared"}
    if isinstance(op, BlocksRemoved):
        return {"type": "BlockRemoved", "block_hashes": op.hashes, "medium": op.medium.value}
    event: dict[str, Any] = {
        "type": "BlockStored",
        "block_hashes": op.hashes,
        "parent_block_hash": op.parent,
        "token_ids": op.units,
        "block_size": op.page_size,
        "lora_id": None,
        "medium": op.medium.value,
    }
    if op.namespace.cache_salt is not None:
        event["cache_salt"] = op.namespace.cache_salt
    if op.session_id is not None:
        event["session_id"] = op.session_id
    if dialect is Dialect.MAP_LORA and op.namespace.lora_name is not None:
        event["lora_name"] = op.namespace.lora_name
    return event


def _as_vllm(op: CacheOp, group: int = 0, kind: str = "full_attention") -> dict[str, Any]:
    if isinstance(op, CacheCleared):
        return {"type": "AllBlocksCleared"}
    medium = "GPU" if op.medium is Medium.GPU else "CPU"
    if isinstance(op, BlocksRemoved):
        return {"type": "BlockRemoved", "block_hashes": op.hashes, "medium": medium, "group_idx": group}
    return {
        "type": "BlockStored",
        "block_hashes": op.hashes,
        "parent_block_hash": op.parent,
        "token_ids": op.units,
        "block_size": op.page_size,
        "lora_id": None if op.namespace.lora_name is None else 1,
        "medium": medium,
        "lora_name": op.namespace.lora_name,
        "extra_keys": _vllm_extra_keys(op),
        "group_idx": group,
        "kv_cache_spec_kind": kind,
    }


def _as_hybrid(op: CacheOp) -> Iterator[dict[str, Any]]:
    """What each group of a hybrid model publishes. All of them name a block by the same hash. A window gives up at once
    what it has passed; a state is kept for pages of its own size."""
    if isinstance(op, CacheCleared):
        yield _as_vllm(op)
        return
    window = _as_vllm(op, _WINDOW_GROUP, "sliding_window")
    full = _as_vllm(op, _FULL_GROUP)
    if isinstance(op, BlocksRemoved):
        yield from (full, window)
        return
    yield from (window, full)
    passed = replace(op, hashes=op.hashes[:-_WINDOW_BLOCKS])
    if passed.hashes:
        yield _as_vllm(BlocksRemoved(passed.hashes, op.medium), _WINDOW_GROUP)
    if len(op.hashes) > 1:
        state = replace(op, hashes=op.hashes[1:2], units=op.units[: 2 * op.page_size], page_size=2 * op.page_size)
        yield _as_vllm(state, _STATE_GROUP, "mamba")


def _vllm_extra_keys(op: BlocksStored) -> list[list[str] | None]:
    """Per block: the adapter on every block, the salt on a prompt's first."""
    keys: list[list[str] | None] = []
    for index in range(len(op.hashes)):
        key = [op.namespace.lora_name] if op.namespace.lora_name is not None else []
        if op.namespace.cache_salt is not None and index == 0 and op.parent is None:
            key.append(op.namespace.cache_salt)
        keys.append(key or None)
    return keys
