"""Published hashes equal the real engines'."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from sgl_router.lab.mock_worker.config import Dialect
from sgl_router.lab.mock_worker.hashing import SglangHasher, VllmHasher, chain_hashes, hasher_for
from sgl_router.lab.mock_worker.namespace import DEFAULT_NAMESPACE, Namespace
from sgl_router.lab.mock_worker.profile import EngineProfile

Golden = Callable[[str], dict[str, Any]]


def stored_events(capture: dict[str, Any]) -> list[tuple[list[int], int | None, list[Any], int, str | None]]:
    """(hashes, parent, units, page size, salt) of every store of a capture."""
    found = []
    for step in capture["steps"]:
        for batch in step.get("batches", []):
            for event in msgspec.msgpack.decode(bytes.fromhex(batch["frames_hex"][2]))[1]:
                if isinstance(event, dict) and event["type"] == "BlockStored":
                    row = (event["block_hashes"], event["parent_block_hash"], event["token_ids"])
                    found.append((*row, event["block_size"], event.get("cache_salt")))
                elif isinstance(event, list) and event[0] == "BlockStored":
                    salt = event[7]["cache_salt"] if len(event) > 7 else None
                    found.append((event[1], event[2], event[3], event[4], salt))
    return found


@pytest.mark.parametrize(
    "name",
    [
        "radix_0.5.6_page16",
        "radix_0.5.12_page16",
        "radix_0.5.12_page1",
        "radix_0.5.12_eagle_page4",
        "radix_0.5.18_page16",
        "radix_0.5.20_page16",
        "server_0.5.23_page16",
        "server_0.5.23_page64",
    ],
)
def test_every_stored_chain_of_a_capture_is_recomputed(name: str, golden: Golden) -> None:
    chains: dict[tuple[str | None, int | None], list[Any]] = {}
    checked = 0
    for hashes, parent, units, page_size, salt in stored_events(golden(name)):
        units = [tuple(unit) if isinstance(unit, list) else unit for unit in units]
        before = chains.get((salt, parent), [])
        assert parent is None or before, "a parent that was never stored"
        path = before + units
        expected = chain_hashes(SglangHasher(), path, page_size, Namespace(cache_salt=salt))
        assert expected[-len(hashes) :] == hashes
        for index, block in enumerate(expected):
            chains[(salt, block)] = path[: (index + 1) * page_size]
        checked += len(hashes)
    assert checked >= 3


def test_adapters_wrap_hashes_in_their_namespace() -> None:
    namespace = Namespace(lora_name="adapter", lora_id="4f2a")
    seed = hashlib.sha256(b"sglang-kv-event-namespace-v1" + b"\x01" + (4).to_bytes(8, "little") + b"4f2a\x00")
    plain = chain_hashes(SglangHasher(), [1, 2, 3, 4], 2, DEFAULT_NAMESPACE)
    wrapped = chain_hashes(SglangHasher(), [1, 2, 3, 4], 2, namespace)
    for before, after in zip(plain, wrapped, strict=True):
        digest = hashlib.sha256(seed.digest() + before.to_bytes(8, "big", signed=True)).digest()
        assert after == int.from_bytes(digest[:8], "big", signed=True)


def test_only_versions_that_salt_hashes_tell_tenants_apart() -> None:
    salted = Namespace(cache_salt="tenant")
    for dialect, differs in ((Dialect.ARRAY17, False), (Dialect.SALT_ARRAY, True)):
        hasher = hasher_for(EngineProfile(dialect, {False: "0.5.17", True: "0.5.18"}[differs]))
        one = chain_hashes(hasher, [1, 2], 2, DEFAULT_NAMESPACE)
        other = chain_hashes(hasher, [1, 2], 2, salted)
        assert (one != other) is differs


def test_token_ids_beyond_32_bits_have_their_own_form() -> None:
    big = 2**32
    digest = hashlib.sha256(b"\xff" + big.to_bytes(8, "little") + (7).to_bytes(8, "little")).digest()
    expected = int.from_bytes(digest[:8], "big", signed=True)
    assert chain_hashes(SglangHasher(), [big, 7], 2, DEFAULT_NAMESPACE) == [expected]


def test_vllm_hashes_are_unsigned_and_depend_on_the_salt() -> None:
    units = list(range(64))
    hashes = chain_hashes(VllmHasher(), units, 4, DEFAULT_NAMESPACE)
    assert all(0 <= block < 2**64 for block in hashes)
    assert any(block >= 2**63 for block in hashes)
    assert not set(hashes) & set(chain_hashes(VllmHasher(), units, 4, Namespace(cache_salt="s")))
