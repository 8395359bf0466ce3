from __future__ import annotations

import json
import pathlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_router.kv_events import DecodeFailure, Tier, WireError, decode_batch, decode_frame
from sgl_router.kv_events.wire import BlockRemoved, BlocksCleared, BlockStored

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures" / "kv_events"
CAPTURES = sorted(FIXTURES.glob("*.json"))


def encode(*events: object, ts: object = 1.5, rank: object = 0) -> bytes:
    return msgspec.msgpack.encode([ts, list(events), rank])


def one(event: object) -> object:
    (decoded,) = list(decode_batch(encode(event)).events)
    return decoded


@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: path.stem)
def test_captured_frames_of_every_engine_decode_to_what_was_captured(path: pathlib.Path) -> None:
    seen = 0
    for step in json.loads(path.read_text())["steps"]:
        for batch in step.get("batches", []):
            parts = [bytes.fromhex(part) for part in batch["frames_hex"]]
            frame = decode_frame(parts, 1 << 26)
            assert frame.seq == batch["seq"]
            ts, events, rank = batch["decoded"]
            decoded = decode_batch(frame.payload)
            assert (decoded.ts, decoded.dp_rank) == (ts, rank)
            for event, raw in zip(decoded.events, events, strict=True):
                fields = raw if isinstance(raw, dict) else dict(enumerate(raw))
                tag = fields.get("type", fields.get(0))
                if tag == "BlockStored":
                    assert isinstance(event, BlockStored)
                    assert list(event.block_hashes) == (fields.get("block_hashes") or fields.get(1))
                    assert event.parent_hash == fields.get("parent_block_hash", fields.get(2))
                    assert list(event.token_ids) == (fields.get("token_ids") or fields.get(3))
                    assert event.block_size == fields.get("block_size", fields.get(4))
                    assert event.medium_given == ("medium" in fields or 6 in fields)
                elif tag == "BlockRemoved":
                    assert isinstance(event, BlockRemoved)
                    assert list(event.block_hashes) == (fields.get("block_hashes") or fields.get(1))
                else:
                    assert isinstance(event, BlocksCleared)
                seen += 1
    assert seen


def test_arrays_of_every_length_decode() -> None:
    short = one(["BlockStored", [1], None, [5, 6], 2])
    assert short == BlockStored([1], None, [5, 6], 2, Tier.GPU, False, None, None)
    with_lora = one(["BlockStored", [1], 9, [5, 6], 2, None])
    assert with_lora == BlockStored([1], 9, [5, 6], 2, Tier.GPU, False, None, None)
    with_medium = one(["BlockStored", [1], None, [5, 6], 2, None, "CPU_PINNED"])
    assert with_medium == BlockStored([1], None, [5, 6], 2, Tier.CPU_PINNED, True, None, None)
    salted = one(["BlockStored", [1], None, [5, 6], 2, None, "GPU", {"cache_salt": "s"}, "later", "versions"])
    assert salted == BlockStored([1], None, [5, 6], 2, Tier.GPU, True, "s", None)
    assert one(["BlockRemoved", [1, 2]]) == BlockRemoved([1, 2], Tier.GPU)
    assert one(["BlockRemoved", [1], "CPU_PINNED", "later"]) == BlockRemoved([1], Tier.CPU_PINNED)
    assert one(["AllBlocksCleared"]) == BlocksCleared()


def test_maps_decode_with_unknown_keys_ignored() -> None:
    event = {
        "type": "BlockStored",
        "block_hashes": [-3, 2**64 - 1, b"\x01" * 32],
        "parent_block_hash": b"\x02",
        "token_ids": [1, 2, 3],
        "block_size": 1,
        "lora_id": None,
        "medium": "DISK",
        "cache_salt": "salt",
        "lora_name": "adapter",
        "session_id": "x",
        "invented_later": {"a": 1},
    }
    stored = one(event)
    assert stored == BlockStored(
        [-3, 2**64 - 1, b"\x01" * 32], b"\x02", [1, 2, 3], 1, Tier.DISK, True, "salt", "adapter"
    )


@pytest.mark.parametrize(
    ("medium", "tier"),
    [
        ("GPU", Tier.GPU),
        ("CPU", Tier.CPU_PINNED),
        ("STORAGE", Tier.EXTERNAL),
        (None, Tier.GPU),
        ("TAPE", None),
        (7, None),
    ],
)
def test_media_have_tiers_and_unknown_ones_none(medium: object, tier: Tier | None) -> None:
    base = {"type": "BlockRemoved", "block_hashes": [1], "medium": medium}
    assert one(base) == BlockRemoved([1], tier)


def test_vllm_extra_keys_make_blocks_opaque() -> None:
    base = {"type": "BlockStored", "block_hashes": [1], "token_ids": [1], "block_size": 1}
    assert one(base | {"extra_keys": [None]}).opaque is False  # type: ignore[attr-defined]
    assert one(base | {"extra_keys": [["salt"]]}).opaque is True  # type: ignore[attr-defined]
    assert one(base | {"extra_keys": "odd"}).opaque is True  # type: ignore[attr-defined]


def test_unknown_events_are_skipped() -> None:
    payload = encode({"type": "BlockMoved", "x": 1}, ["Checkpoint", 3], ["AllBlocksCleared"])
    assert list(decode_batch(payload).events) == [BlocksCleared()]


def test_bigram_tokens_are_pairs() -> None:
    stored = one(["BlockStored", [1], None, [[5, 6], [6, 7]], 2, None, "GPU"])
    assert isinstance(stored, BlockStored)
    assert list(stored.token_ids) == [[5, 6], [6, 7]]


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"\xc1", DecodeFailure.MSGPACK),
        (b"", DecodeFailure.MSGPACK),
        (encode(["AllBlocksCleared"])[:-2], DecodeFailure.MSGPACK),
        (msgspec.msgpack.encode({"a": 1}), DecodeFailure.BATCH_SHAPE),
        (msgspec.msgpack.encode([1.0]), DecodeFailure.BATCH_SHAPE),
        (msgspec.msgpack.encode(["now", [], 0]), DecodeFailure.BATCH_SHAPE),
        (encode(5), DecodeFailure.EVENT_SHAPE),
        (encode([]), DecodeFailure.EVENT_SHAPE),
        (encode({"no": "type"}), DecodeFailure.EVENT_SHAPE),
        (encode(["BlockStored", [1], None, [1]]), DecodeFailure.EVENT_SHAPE),
        (encode(["BlockStored", 1, None, [1], 1]), DecodeFailure.EVENT_SHAPE),
        (encode(["BlockStored", ["a"], None, [1], 1]), DecodeFailure.EVENT_SHAPE),
        (encode(["BlockStored", [True], None, [1], 1]), DecodeFailure.EVENT_SHAPE),
        (encode(["BlockStored", [1], "p", [1], 1]), DecodeFailure.EVENT_SHAPE),
        (encode(["BlockStored", [1], None, [1], 0]), DecodeFailure.EVENT_SHAPE),
        (encode(["BlockStored", [1], None, [1], True]), DecodeFailure.EVENT_SHAPE),
        (encode(["BlockStored", [1], None, [1], 1 << 20]), DecodeFailure.EVENT_SHAPE),
        (encode(["BlockStored", [1], None, [1, 2, 3], 2]), DecodeFailure.TOKEN_IDS),
        (encode(["BlockStored", [1], None, "ab", 2]), DecodeFailure.TOKEN_IDS),
        (encode(["BlockRemoved"]), DecodeFailure.EVENT_SHAPE),
        (encode(["BlockRemoved", None]), DecodeFailure.EVENT_SHAPE),
    ],
)
def test_bad_payloads_name_their_reason(payload: bytes, reason: DecodeFailure) -> None:
    with pytest.raises(WireError) as caught:
        list(decode_batch(payload).events)
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([b"kv", b"\0" * 8], DecodeFailure.FRAME_SHAPE),
        ([b"kv", b"\0" * 8, b"x", b"y"], DecodeFailure.FRAME_SHAPE),
        ([b"kv", b"\0" * 7, b"x"], DecodeFailure.SEQUENCE),
        ([b"kv", b"\0" * 8, b"x" * 11], DecodeFailure.TOO_LARGE),
    ],
)
def test_bad_frames_name_their_reason(parts: list[bytes], reason: DecodeFailure) -> None:
    with pytest.raises(WireError) as caught:
        decode_frame(parts, 10)
    assert caught.value.reason is reason


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_only_wire_errors(payload: bytes) -> None:
    try:
        list(decode_batch(payload).events)
    except WireError as error:
        assert error.reason in DecodeFailure


_scalar = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5) | st.binary(max_size=5)
_value = st.recursive(
    _scalar, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)


@settings(max_examples=300)
@given(st.sampled_from(["BlockStored", "BlockRemoved", "AllBlocksCleared"]), st.lists(_value, max_size=8))
def test_arbitrary_event_arrays_raise_only_wire_errors(tag: str, rest: list[object]) -> None:
    try:
        list(decode_batch(encode([tag, *rest])).events)
    except WireError as error:
        assert error.reason in DecodeFailure
