"""What a radix cache did, in the order it did it: the input of every event encoder."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from sgl_router.lab.mock_worker.hashing import Unit
from sgl_router.lab.mock_worker.namespace import DEFAULT_NAMESPACE, Namespace


class Medium(str, Enum):
    """The memory tier holding a block, spelled as on the wire."""

    GPU = "GPU"
    CPU_PINNED = "CPU_PINNED"


@dataclass(frozen=True)
class BlocksStored:
    """A chain of blocks became resident; `units` holds `page_size` units for each hash."""

    hashes: tuple[int, ...]
    parent: int | None
    units: tuple[Unit, ...]
    page_size: int
    medium: Medium = Medium.GPU
    namespace: Namespace = DEFAULT_NAMESPACE
    session_id: str | None = None


@dataclass(frozen=True)
class BlocksRemoved:
    """The blocks of one node left a tier."""

    hashes: tuple[int, ...]
    medium: Medium = Medium.GPU


@dataclass(frozen=True)
class CacheCleared:
    """Everything, on every tier, is gone."""


CacheOp = BlocksStored | BlocksRemoved | CacheCleared
