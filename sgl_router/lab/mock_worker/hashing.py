"""Block hashes as the engines publish them: chained SHA-256, cut to 8 bytes for the wire."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import Protocol, cast

from sgl_router.lab.mock_worker.namespace import Namespace
from sgl_router.lab.mock_worker.profile import EngineProfile

Bigram = tuple[int, int]
Unit = int | Bigram
"""One cache key element: a token id, or with bigram keys a pair of neighbouring token ids."""

_SALT_TAG = b"sglang-cache-salt-v1\0"
_NAMESPACE_TAG = b"sglang-kv-event-namespace-v1"
_VLLM_ROOT = hashlib.sha256(b"vllm-none-hash").digest()


class BlockHasher(Protocol):
    """Hashes pages of one namespace: `seed`, then `extend` per page; `wire` is what is published."""

    def seed(self, namespace: Namespace) -> bytes:
        """The digest before the first page."""

    def extend(self, prior: bytes, page: Sequence[Unit]) -> bytes:
        """The 32-byte digest of the chain with one more page."""

    def wire(self, digest: bytes, namespace: Namespace) -> int:
        """The integer published for a digest."""


def _pack(page: Sequence[Unit]) -> bytes:
    """Token ids as the hash reads them; a bigram counts as its two tokens."""
    ids = page if isinstance(page[0], int) else [token for pair in page for token in cast("Bigram", pair)]
    try:
        return struct.pack(f"<{len(ids)}I", *ids)
    except struct.error:  # an id beyond 32 bits: recent engines hash the whole page in another form
        return b"\xff" + struct.pack(f"<{len(ids)}Q", *ids)


def _namespace_seed(extra_key: str | None, cache_salt: str | None) -> bytes:
    digest = hashlib.sha256(_NAMESPACE_TAG)
    for part in (extra_key, cache_salt):
        if part is None:
            digest.update(b"\x00")
        else:
            encoded = part.encode()
            digest.update(b"\x01" + len(encoded).to_bytes(8, "little") + encoded)
    return digest.digest()


class SglangHasher:
    """SGLang's algorithm, unchanged from 0.5.6 to 0.5.23 but for salts (0.5.18) and adapters (0.5.22)."""

    def __init__(self, *, salted: bool = True, wraps_lora: bool = True) -> None:
        self._salted = salted
        self._wraps_lora = wraps_lora

    def seed(self, namespace: Namespace) -> bytes:
        if self._salted and namespace.cache_salt is not None:
            return hashlib.sha256(_SALT_TAG + namespace.cache_salt.encode()).digest()
        return b""

    def extend(self, prior: bytes, page: Sequence[Unit]) -> bytes:
        return hashlib.sha256(prior + _pack(page)).digest()

    def wire(self, digest: bytes, namespace: Namespace) -> int:
        head = digest[:8]
        if self._wraps_lora and namespace.lora_name is not None:
            seed = _namespace_seed(namespace.engine_extra_key, namespace.cache_salt)
            head = hashlib.sha256(seed + head).digest()[:8]
        return int.from_bytes(head, "big", signed=True)


class VllmHasher:
    """Unsigned low 8 bytes, as vLLM publishes. The input is this mock's own: vLLM's is not recomputable."""

    def seed(self, namespace: Namespace) -> bytes:
        extra = (namespace.lora_name, namespace.cache_salt)
        return hashlib.sha256(_VLLM_ROOT + repr(extra).encode()).digest()

    def extend(self, prior: bytes, page: Sequence[Unit]) -> bytes:
        return hashlib.sha256(prior + _pack(page)).digest()

    def wire(self, digest: bytes, namespace: Namespace) -> int:
        return int.from_bytes(digest[-8:], "big")


def hasher_for(profile: EngineProfile) -> BlockHasher:
    """The hasher an engine version uses."""
    if profile.is_vllm:
        return VllmHasher()
    return SglangHasher(salted=profile.salts_hashes, wraps_lora=profile.wraps_lora_hashes)


def chain_hashes(hasher: BlockHasher, units: Sequence[Unit], page_size: int, namespace: Namespace) -> list[int]:
    """Published hashes of every full page of `units`."""
    prior, hashes = hasher.seed(namespace), []
    for start in range(0, len(units) // page_size * page_size, page_size):
        prior = hasher.extend(prior, units[start : start + page_size])
        hashes.append(hasher.wire(prior, namespace))
    return hashes
