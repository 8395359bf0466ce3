"""Answers a radix cache gives: how much of a prompt it holds, and which pages it keeps."""

from __future__ import annotations

from dataclasses import dataclass

from sgl_router.lab.mock_worker.hashing import Unit
from sgl_router.lab.mock_worker.namespace import Namespace
from sgl_router.lab.mock_worker.node import RadixNode
from sgl_router.lab.mock_worker.ops import Medium


@dataclass(frozen=True)
class PrefixMatch:
    """The longest cached prefix: `device_tokens` first, then `host_tokens` that would have to be loaded."""

    device_tokens: int
    host_tokens: int
    device_node: RadixNode
    host_node: RadixNode

    @property
    def tokens(self) -> int:
        return self.device_tokens + self.host_tokens


@dataclass(frozen=True)
class CachedBlock:
    """One page the cache holds: its published hashes, its units, how many pages precede it, and where it is."""

    namespace: Namespace
    hash: int
    parent: int | None
    units: tuple[Unit, ...]
    depth: int
    tiers: frozenset[Medium]
