"""Decoding of KV-event frames: every dialect SGLang 0.5.6-0.5.23 and vLLM put on the wire, into three event types.

A frame is (topic, 8-byte big-endian sequence, msgpack payload); a payload is `[ts, events, dp_rank]`. An event is a
positional array led by its tag, or a map with a `type` key. Unknown tags, keys and trailing elements are ignored.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Any, NamedTuple

import msgspec

from sgl_router.kv_events.follow.extra_keys import told_apart
from sgl_router.kv_events.index.hashing import pack_units

__all__ = [
    "END_SEQ",
    "BlockRemoved",
    "BlockStored",
    "BlocksCleared",
    "DecodeFailure",
    "EngineHash",
    "Event",
    "EventBatch",
    "Frame",
    "Tier",
    "WireError",
    "decode_batch",
    "decode_event",
    "decode_events",
    "decode_frame",
]

EngineHash = int | bytes

# -1: ends a replay, and a publisher's stream.
END_SEQ = 2**64 - 1
MAX_EVENTS_PER_BATCH = 262_144
MAX_BLOCK_SIZE = 65_536
# What neighbouring events are joined to at most: one step of the pump.
MAX_MERGED = 511
MAX_MERGED_TOKENS = 4_096


class Tier(str, Enum):
    """Where a block's KV lives, by the engine's own names."""

    GPU = "GPU"
    CPU_PINNED = "CPU_PINNED"
    DISK = "DISK"
    EXTERNAL = "EXTERNAL"


# vLLM's names for the same places.
_TIERS = {tier.value: tier for tier in Tier} | {"CPU": Tier.CPU_PINNED, "STORAGE": Tier.EXTERNAL}


class DecodeFailure(str, Enum):
    """Why a frame was refused: the metric label and the log field."""

    FRAME_SHAPE = "frame_shape"
    SEQUENCE = "sequence"
    TOO_LARGE = "too_large"
    MSGPACK = "msgpack"
    BATCH_SHAPE = "batch_shape"
    EVENT_SHAPE = "event_shape"
    TOKEN_IDS = "token_ids"
    INTERNAL = "internal"


class WireError(ValueError):
    """A frame that cannot be used. Nothing of it was applied."""

    def __init__(self, reason: DecodeFailure, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason


class Frame(NamedTuple):
    """One PUB message, its payload not yet decoded. What is large comes as the memory it was received into."""

    seq: int
    payload: bytes | memoryview


class BlockStored(NamedTuple):
    """A chain of blocks: block i holds `token_ids[i*block_size:(i+1)*block_size]`, its parent is block i-1.

    `token_ids`, as decoded, are an array with pairs flattened; a list of ints or pairs means the same.
    `tier` is None for a medium this version does not know. `medium_given` is False in dialects up to 0.5.8.
    `left_out`: how many more blocks the chain had, whose namespace the event does not tell.
    `group` and `kind`: vLLM's cache group that stored it, and what the group's layers attend to.
    `merged`: the blocks came in events of their own, so an unknown parent of the first does not concern the others.
    """

    block_hashes: Sequence[EngineHash]
    parent_hash: EngineHash | None
    token_ids: Sequence[Any]
    block_size: int
    tier: Tier | None
    medium_given: bool
    cache_salt: str | None
    lora_name: str | None
    left_out: int = 0
    group: int | None = None
    kind: str | None = None
    merged: bool = False

    @property
    def bigram(self) -> bool:
        """Whether the units are pairs of tokens. Not for an event without blocks."""
        tokens = self.token_ids
        if isinstance(tokens, array):
            return len(tokens) > self.block_size * len(self.block_hashes)
        return isinstance(tokens[0], (list, tuple))

    def piece(self, start: int, stop: int) -> BlockStored:
        """Some of its blocks, as an event of their own."""
        hashes, tokens, size = self.block_hashes, self.token_ids, self.block_size
        if isinstance(tokens, array):
            size = len(tokens) // len(hashes)
        return self._replace(
            block_hashes=hashes[start:stop],
            parent_hash=hashes[start - 1] if start else self.parent_hash,
            token_ids=tokens[start * size : stop * size],
            left_out=self.left_out if stop >= len(hashes) else 0,
        )


class BlockRemoved(NamedTuple):
    """Blocks gone from one tier (of one `group`); `tier` None (unknown medium) means from wherever they were."""

    block_hashes: Sequence[EngineHash]
    tier: Tier | None
    group: int | None = None

    def piece(self, start: int, stop: int) -> BlockRemoved:
        """Some of its blocks, as an event of their own."""
        return self._replace(block_hashes=self.block_hashes[start:stop])


class BlocksCleared(NamedTuple):
    """The rank's whole cache is empty, every tier."""


Event = BlockStored | BlockRemoved | BlocksCleared


class EventBatch(NamedTuple):
    """`ts`: the publisher's wall clock, seconds. `events` can be iterated once."""

    ts: float
    events: Iterator[Event]
    dp_rank: int | None


_decode = msgspec.msgpack.Decoder().decode


def decode_frame(parts: Sequence[bytes | memoryview], max_bytes: int) -> Frame:
    """Split one multipart message. Raises WireError."""
    if len(parts) != 3:
        raise WireError(DecodeFailure.FRAME_SHAPE, f"{len(parts)} parts, expected topic, sequence, payload")
    _, seq, payload = parts
    if len(seq) != 8:
        raise WireError(DecodeFailure.SEQUENCE, f"sequence of {len(seq)} bytes, expected 8")
    if len(payload) > max_bytes:
        raise WireError(DecodeFailure.TOO_LARGE, f"payload of {len(payload)} bytes, limit {max_bytes}")
    return Frame(int.from_bytes(seq, "big"), payload)


def decode_batch(payload: bytes | memoryview) -> EventBatch:
    """Decode one payload's envelope. Its events are checked as they are iterated: a batch may hold more of them than
    can be looked at in one step of an event loop. Raises WireError, here and while iterating."""
    try:
        batch = _decode(payload)
    except (msgspec.DecodeError, RecursionError, ValueError, TypeError) as error:
        raise WireError(DecodeFailure.MSGPACK, str(error)) from error
    if not isinstance(batch, list) or len(batch) < 2 or not isinstance(batch[1], list):
        raise WireError(DecodeFailure.BATCH_SHAPE, "expected [ts, events, dp_rank]")
    ts, raw = batch[0], batch[1]
    rank = batch[2] if len(batch) > 2 else None
    if isinstance(ts, bool) or not isinstance(ts, (int, float)):
        raise WireError(DecodeFailure.BATCH_SHAPE, f"ts is {type(ts).__name__}, expected a number")
    if len(raw) > MAX_EVENTS_PER_BATCH:
        raise WireError(DecodeFailure.TOO_LARGE, f"{len(raw)} events, limit {MAX_EVENTS_PER_BATCH}")
    return EventBatch(float(ts), decode_events(raw), rank if isinstance(rank, int) else None)


def decode_events(raw: list[Any]) -> Iterator[Event]:
    """What the items say, in their order. Neighbours that continue one another become one event: some versions publish
    every page on its own. Raises WireError while iterating."""
    index, count = 0, len(raw)
    while index < count:
        item = raw[index]
        event = decode_event(item)
        index += 1
        if event is None:
            continue
        if index < count and type(item) is list and not isinstance(event, BlocksCleared):
            more = raw[index : index + MAX_MERGED]
            merged = _chain(event, item, more) if isinstance(event, BlockStored) else _removals(event, item, more)
            if merged is not None:
                event, taken = merged
                index += taken
        yield event


def _chain(first: BlockStored, item: list[Any], rest: list[Any]) -> tuple[BlockStored, int] | None:
    """`first` with the stores of one block each that follow it, every one the last one's child and alike otherwise."""
    size, page = len(item), first.block_size
    if len(first.block_hashes) != 1 or first.left_out or size > 8:  # extra keys mean another thing in each place
        return None
    (last,) = first.block_hashes
    kind, pair, ending = type(last), type(item[3][0]), item[6:]
    hashes, tokens = [last], list(item[3])
    for other in rest:
        if type(other) is not list or len(other) != size or other[0] != "BlockStored":
            break
        block, parent, ids = other[1], other[2], other[3]
        if (
            type(block) is not list
            or len(block) != 1
            or type(block[0]) is not kind
            or type(parent) is not kind
            or parent != last
            or type(ids) is not list
            or len(ids) != page
            or type(other[4]) is not int
            or other[4] != page
            or type(ids[0]) is not pair
            or other[6:] != ending
        ):
            break
        last = block[0]
        hashes.append(last)
        tokens += ids
        if len(tokens) >= MAX_MERGED_TOKENS:
            break
    if len(hashes) == 1 or len(set(hashes)) < len(hashes):  # a hash that changes its block does so in turn
        return None
    return first._replace(block_hashes=hashes, token_ids=_packed(tokens), merged=True), len(hashes) - 1


def _removals(first: BlockRemoved, item: list[Any], rest: list[Any]) -> tuple[BlockRemoved, int] | None:
    """`first` with the removals of one block each that follow it in the same medium."""
    size, ending = len(item), item[2:]
    hashes = list(first.block_hashes)
    taken = 0
    for other in rest:
        if type(other) is not list or len(other) != size or other[0] != "BlockRemoved" or other[2:] != ending:
            break
        block = other[1]
        if type(block) is not list or len(block) != 1 or (type(block[0]) is not int and type(block[0]) is not bytes):
            break
        hashes += block
        taken += 1
    return (first._replace(block_hashes=hashes), taken) if taken else None


def decode_event(item: Any) -> Event | None:
    """One item of a batch; None for a tag this version does not know. Raises WireError."""
    if isinstance(item, dict):
        tag, get = item.get("type"), item.get
        if tag == "BlockStored":
            return _stored(
                get("block_hashes"),
                get("parent_block_hash"),
                get("token_ids"),
                get("block_size"),
                get("lora_id"),
                get("medium"),
                "medium" in item,
                get("cache_salt"),
                get("lora_name"),
                get("extra_keys"),
                get("group_idx"),
                get("kv_cache_spec_kind"),
            )
        if tag == "BlockRemoved":
            return _removed(get("block_hashes"), get("medium"), "medium" in item, get("group_idx"))
    elif isinstance(item, list) and item:
        tag, size = item[0], len(item)
        if tag == "BlockStored":
            if size < 5:
                raise WireError(DecodeFailure.EVENT_SHAPE, f"BlockStored of {size} elements, expected at least 5")
            # SGLang's eighth is a map with the salt; vLLM's arrays go on with adapter, extra keys, group and its kind.
            extra = item[7] if size > 7 else None
            vllm = size > 8 and not isinstance(extra, dict)
            return _stored(
                item[1],
                item[2],
                item[3],
                item[4],
                item[5] if size > 5 else None,
                item[6] if size > 6 else None,
                size > 6,
                extra.get("cache_salt") if isinstance(extra, dict) else None,
                extra,
                item[8] if vllm else None,
                item[9] if vllm and size > 9 else None,
                item[10] if vllm and size > 10 else None,
            )
        if tag == "BlockRemoved":
            if size < 2:
                raise WireError(DecodeFailure.EVENT_SHAPE, "BlockRemoved without block hashes")
            return _removed(item[1], item[2] if size > 2 else None, size > 2, item[3] if size > 3 else None)
    else:
        raise WireError(DecodeFailure.EVENT_SHAPE, f"event is {type(item).__name__}, expected an array or a map")
    if tag == "AllBlocksCleared":
        return BlocksCleared()
    if not isinstance(tag, str):
        raise WireError(DecodeFailure.EVENT_SHAPE, "event without a tag")
    return None


def _stored(
    hashes: Any,
    parent: Any,
    tokens: Any,
    block_size: Any,
    lora_id: Any,
    medium: Any,
    medium_given: bool,
    salt: Any,
    lora_name: Any,
    extra_keys: Any,
    group: Any,
    kind: Any,
) -> BlockStored:
    _check_hashes(hashes, "BlockStored")
    if parent is not None and (isinstance(parent, bool) or not isinstance(parent, (int, bytes))):
        raise WireError(DecodeFailure.EVENT_SHAPE, f"parent_block_hash is {type(parent).__name__}")
    if isinstance(block_size, bool) or not isinstance(block_size, int) or not 1 <= block_size <= MAX_BLOCK_SIZE:
        raise WireError(DecodeFailure.EVENT_SHAPE, f"block_size {block_size!r} is not in 1..{MAX_BLOCK_SIZE}")
    if not isinstance(tokens, list) or len(tokens) != block_size * len(hashes):
        found = len(tokens) if isinstance(tokens, list) else type(tokens).__name__
        raise WireError(DecodeFailure.TOKEN_IDS, f"{found} token ids for {len(hashes)} blocks of {block_size}")
    salt = salt if isinstance(salt, str) and salt else None
    lora_name = lora_name if isinstance(lora_name, str) and lora_name else None
    left_out = 0
    if extra_keys is not None or (lora_id is not None and lora_name is None):
        known, told = told_apart(extra_keys, len(hashes), first=parent is None, lora_id=lora_id, lora_name=lora_name)
        salt = told or salt
        if known < len(hashes):
            left_out = len(hashes) - known
            hashes, tokens = hashes[:known], tokens[: known * block_size]
    return BlockStored(
        hashes,
        parent,
        _packed(tokens),
        block_size,
        _tier(medium),
        medium_given,
        salt,
        lora_name,
        left_out,
        group if type(group) is int else None,
        kind if isinstance(kind, str) else None,
    )


def _packed(tokens: list[Any]) -> array[int]:
    try:
        return pack_units(tokens)
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(DecodeFailure.TOKEN_IDS, str(error)) from error


def _removed(hashes: Any, medium: Any, medium_given: bool, group: Any) -> BlockRemoved:
    _check_hashes(hashes, "BlockRemoved")
    return BlockRemoved(hashes, _tier(medium) if medium_given else Tier.GPU, group if type(group) is int else None)


def _tier(medium: Any) -> Tier | None:
    """A dialect without a medium knows only the device; a medium this version cannot name is nowhere."""
    if medium is None:
        return Tier.GPU
    return _TIERS.get(medium) if isinstance(medium, str) else None


def _check_hashes(hashes: Any, what: str) -> None:
    if not isinstance(hashes, list):
        raise WireError(DecodeFailure.EVENT_SHAPE, f"{what}.block_hashes is {type(hashes).__name__}")
    for value in hashes:
        if type(value) is not int and type(value) is not bytes:
            raise WireError(DecodeFailure.EVENT_SHAPE, f"a block hash of {what} is {type(value).__name__}")
