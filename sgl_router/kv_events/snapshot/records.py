"""The records of a snapshot, and blocks packed for one.

A snapshot is a zlib stream of records, each a 4-byte little-endian length and a tagged msgpack object: the header; then
for every rank its head and its blocks in pieces; then the end with totals and a checksum. Keys mean something only
together with the hash secret, so the header carries it: a snapshot is as confidential as the prompts it helps to find.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated

from msgspec import Meta, Struct

from sgl_router.kv_events.follow.stream import Holdings
from sgl_router.kv_events.follow.wire import EngineHash, Tier

__all__ = [
    "MAGIC",
    "VERSION",
    "End",
    "Header",
    "PackedBlocks",
    "RankHead",
    "RankSnapshot",
    "Snapshot",
    "SnapshotError",
    "SnapshotFault",
    "pack",
    "unpack",
]

MAGIC = "sgl-router kv snapshot"
VERSION = 1
_TIER_MASKS = 1 << len(Tier)

_U64 = Annotated[int, Meta(ge=0)]  # msgpack has no larger integer


class SnapshotFault(str, Enum):
    """Why a snapshot was refused: the log field."""

    NOT_A_SNAPSHOT = "not_a_snapshot"
    VERSION = "version"
    COMPRESSION = "compression"
    RECORD = "record"
    ORDER = "order"
    TOO_LARGE = "too_large"
    TRUNCATED = "truncated"
    TRAILING = "trailing"
    CHECKSUM = "checksum"


class SnapshotError(ValueError):
    """Not a snapshot that can be used. Nothing of it may be."""

    def __init__(self, reason: SnapshotFault, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason


class Header(Struct, tag="header", frozen=True, kw_only=True):
    magic: str
    version: int
    created_at: float
    secret: _U64


class RankHead(Struct, tag="rank", frozen=True, kw_only=True):
    """Whose blocks follow. `cursor`: the number of the first frame they do not contain."""

    worker_url: str
    started_at: float | str
    model_id: str
    dp_rank: Annotated[int, Meta(ge=0, le=65_535)]
    cursor: _U64
    page_size: Annotated[int, Meta(ge=1, le=65_536)]
    bigram: bool
    complete: bool


class PackedBlocks(Struct, tag="blocks", frozen=True):
    """`Holdings`: `count` keys as u64, and hashes as i64 (`q`) or u64 (`Q`) where all fit, else as they are."""

    count: Annotated[int, Meta(ge=1, le=65_536)]
    kind: str
    hashes: bytes | list[int | bytes]
    keys: bytes
    tiers: bytes
    parents: list[int | bytes | None] | None = None


class End(Struct, tag="end", frozen=True, kw_only=True):
    ranks: int
    blocks: int
    checksum: _U64
    """xxh3 over every byte before this record."""


@dataclass
class RankSnapshot:
    """One rank's part: all it held at one moment."""

    head: RankHead
    pieces: list[PackedBlocks] = field(default_factory=list)

    @property
    def blocks(self) -> int:
        return sum(piece.count for piece in self.pieces if piece.tiers)

    @property
    def key(self) -> tuple[str, int]:
        return self.head.worker_url, self.head.dp_rank


@dataclass
class Snapshot:
    """A whole one, its checksum right. Blocks stay packed until they are taken over."""

    created_at: float
    secret: int
    ranks: list[RankSnapshot]

    @property
    def blocks(self) -> int:
        return sum(rank.blocks for rank in self.ranks)


# --- blocks ---------------------------------------------------------------------------------------------------------


def pack(held: Holdings) -> PackedBlocks:
    """Smaller and cheaper to keep than the objects: 17 bytes a block with integer hashes of one sign."""
    count = len(held.keys)
    kind, hashes = _pack_hashes(held.hashes)
    keys = struct.pack(f"<{count}Q", *held.keys)
    return PackedBlocks(count, kind, hashes, keys, held.tiers, None if held.parents is None else list(held.parents))


def unpack(packed: PackedBlocks) -> Holdings:
    """ValueError where the parts do not fit together."""
    count = packed.count
    if len(packed.keys) != 8 * count:
        raise ValueError("keys and count differ")
    hashes: Sequence[EngineHash]
    if isinstance(packed.hashes, list):
        hashes = packed.hashes
    elif packed.kind in ("q", "Q") and len(packed.hashes) == 8 * count:
        hashes = struct.unpack(f"<{count}{packed.kind}", packed.hashes)
    else:
        raise ValueError("hashes and count differ")
    if len(hashes) != count or len(set(hashes)) != count:
        raise ValueError("hashes are too few or not distinct")
    if packed.parents is not None and len(packed.parents) != count:
        raise ValueError("parents and count differ")
    if packed.tiers:
        if len(packed.tiers) != count or min(packed.tiers) == 0 or max(packed.tiers) >= _TIER_MASKS:
            raise ValueError("tiers and count differ, or no such tiers")
    elif packed.parents is None:
        raise ValueError("neither tiers nor parents")
    return Holdings(hashes, struct.unpack(f"<{count}Q", packed.keys), packed.tiers, packed.parents)


def _pack_hashes(hashes: Sequence[EngineHash]) -> tuple[str, bytes | list[EngineHash]]:
    for kind in "qQ":
        try:
            return kind, struct.pack(f"<{len(hashes)}{kind}", *hashes)
        except struct.error:
            continue
    return "", list(hashes)
