from __future__ import annotations

import json
import pathlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_router.kv_events import DecodeFailure, Tier, WireError, decode_batch, decode_frame
from sgl_router.kv_events.follow.wire import BlockRemoved, BlocksCleared, BlockStored

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures" / "kv_events"
CAPTURES = sorted(FIXTURES.glob("*.json"))


def encode(*events: object, ts: object = 1.5, rank: object = 0) -> bytes:
    return msgspec.msgpack.encode([ts, list(events), rank])


def one(event: object) -> object:
    (decoded,) = list(decode_batch(encode(event)).events)
    return decoded


def apart(event: object) -> list[tuple[object, ...]]:
    """One entry per block: neighbouring events may have been joined."""
    if isinstance(event, BlockRemoved):
        return [("removed", one) for one in event.block_hashes]
    if not isinstance(event, BlockStored):
        return [("cleared",)]
    parents = [event.parent_hash, *event.block_hashes]
    size = event.block_size
    return [
        (one, parents[i], units_of(event)[i * size : (i + 1) * size], size, event.medium_given)
        for i, one in enumerate(event.block_hashes)
    ]


def units_of(event: BlockStored) -> list[object]:
    """Token ids as an engine sends them, pairs as pairs."""
    ids = list(event.token_ids)
    if not event.bigram or isinstance(ids[0], list):
        return ids
    return [list(pair) for pair in zip(ids[0::2], ids[1::2], strict=True)]


def plain(event: object) -> object:
    """The event with its token ids as a list."""
    return event._replace(token_ids=list(event.token_ids)) if isinstance(event, BlockStored) else event


def raw_event(raw: dict[object, object]) -> object:
    """What a captured event says, read by hand."""
    tag = raw.get("type", raw.get(0))
    hashes = raw.get("block_hashes") or raw.get(1)
    if tag == "BlockStored":
        parent, tokens = raw.get("parent_block_hash", raw.get(2)), raw.get("token_ids") or raw.get(3)
        size = raw.get("block_size", raw.get(4))
        return BlockStored(hashes, parent, tokens, size, None, "medium" in raw or 6 in raw, None, None)
    return BlockRemoved(hashes, None) if tag == "BlockRemoved" else BlocksCleared()


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
            blocks = [block for event in decoded.events for block in apart(event)]
            raws = [fields if isinstance(fields, dict) else dict(enumerate(fields)) for fields in events]
            assert blocks == [block for raw in raws for block in apart(raw_event(raw))]
            seen += len(raws)
    assert seen


def test_arrays_of_every_length_decode() -> None:
    short = one(["BlockStored", [1], None, [5, 6], 2])
    assert plain(short) == BlockStored([1], None, [5, 6], 2, Tier.GPU, False, None, None)
    with_lora = one(["BlockStored", [1], 9, [5, 6], 2, None])
    assert plain(with_lora) == BlockStored([1], 9, [5, 6], 2, Tier.GPU, False, None, None)
    with_medium = one(["BlockStored", [1], None, [5, 6], 2, None, "CPU_PINNED"])
    assert plain(with_medium) == BlockStored([1], None, [5, 6], 2, Tier.CPU_PINNED, True, None, None)
    salted = one(["BlockStored", [1], None, [5, 6], 2, None, "GPU", {"cache_salt": "s"}, "later", "versions"])
    assert plain(salted) == BlockStored([1], None, [5, 6], 2, Tier.GPU, True, "s", None)
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
    assert plain(stored) == BlockStored(
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


def vllm(blocks: int = 1, **fields: object) -> BlockStored:
    base = {"type": "BlockStored", "block_hashes": list(range(blocks)), "token_ids": [1] * blocks, "block_size": 1}
    event = one(base | {"lora_id": None, "lora_name": None} | fields)
    assert isinstance(event, BlockStored)
    return event


@pytest.mark.parametrize("keys", [None, [], [None, None, None], [[], None, []]])
def test_blocks_without_extra_keys_are_everybodys(keys: object) -> None:
    stored = vllm(3, extra_keys=keys)
    assert (len(stored.block_hashes), stored.left_out, stored.cache_salt, stored.lora_name) == (3, 0, None, None)


def test_extra_keys_tell_salt_and_adapter() -> None:
    salted = vllm(3, extra_keys=[["salt"], None, None])
    assert (len(salted.block_hashes), salted.left_out, salted.cache_salt) == (3, 0, "salt")
    adapted = vllm(2, extra_keys=[["a"], ["a"]], lora_name="a", lora_id=1)
    assert (len(adapted.block_hashes), adapted.cache_salt, adapted.lora_name) == (2, None, "a")
    both = vllm(2, extra_keys=[["a", "salt"], ["a"]], lora_name="a", lora_id=1)
    assert (len(both.block_hashes), both.cache_salt, both.lora_name) == (2, "salt", "a")


@pytest.mark.parametrize(
    ("fields", "known"),
    [
        ({"extra_keys": [None, [["hash", 0]], None]}, 1),  # a picture in the second block
        ({"extra_keys": [[["hash", 0]], None, None]}, 0),
        ({"extra_keys": [["hash"], ["hash"], None]}, 1),  # versions that name the picture alone: a salt nobody sends
        ({"extra_keys": [None, ["hash"], None]}, 1),
        ({"extra_keys": [["hash"], None, None], "parent_block_hash": 9}, 0),  # a salt stands on a prompt's first block
        ({"extra_keys": [["salt", ["hash", 0]], None, None]}, 0),
        ({"extra_keys": [["salt", "hash"], None, None]}, 0),
        ({"extra_keys": [[b"embeds"], None, None]}, 0),
        ({"extra_keys": [[7], None, None], "lora_id": 7}, 0),  # an adapter by number
        ({"lora_id": 7}, 0),
        ({"extra_keys": [["a"], None]}, 0),
        ({"extra_keys": "odd"}, 0),
        ({"extra_keys": ["odd", None, None]}, 0),
    ],
)
def test_blocks_whose_namespace_cannot_be_told_are_left_out(fields: dict[str, object], known: int) -> None:
    stored = vllm(3, **fields)
    assert (len(stored.block_hashes), stored.left_out) == (known, 3 - known)
    assert len(stored.token_ids) == known


def test_arrays_of_vllm_decode() -> None:
    salted = one(["BlockStored", [1, 2], None, [5, 6], 1, None, "GPU", None, [["s"], None], 2, "full_attention"])
    assert plain(salted) == BlockStored([1, 2], None, [5, 6], 1, Tier.GPU, True, "s", None, 0, 2, "full_attention")
    adapted = one(["BlockStored", [1], None, [5], 1, 3, "GPU", "adapter", [["adapter"]], 0, "mamba"])
    assert plain(adapted) == BlockStored([1], None, [5], 1, Tier.GPU, True, None, "adapter", 0, 0, "mamba")
    assert one(["BlockRemoved", [1], "GPU", 2]) == BlockRemoved([1], Tier.GPU, 2)
    # Pages with keys of their own are not joined: a key in the first place is a salt, elsewhere it is not.
    pages = [["BlockStored", [n], n - 1 or None, [5], 1, None, "GPU", None, [["x"]], 0] for n in (1, 2)]
    assert [(len(event.block_hashes), event.left_out) for event in decode_batch(encode(*pages)).events] == [
        (1, 0),
        (0, 1),
    ]


def test_unknown_events_are_skipped() -> None:
    payload = encode({"type": "BlockMoved", "x": 1}, ["Checkpoint", 3], ["AllBlocksCleared"])
    assert list(decode_batch(payload).events) == [BlocksCleared()]


def test_bigram_tokens_are_pairs() -> None:
    stored = one(["BlockStored", [1], None, [[5, 6], [6, 7]], 2, None, "GPU"])
    assert isinstance(stored, BlockStored)
    assert stored.bigram
    assert units_of(stored) == [[5, 6], [6, 7]]


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
        (encode(["BlockStored", [1], None, [1, -2], 2]), DecodeFailure.TOKEN_IDS),
        (encode(["BlockStored", [1], None, [1, 2.0], 2]), DecodeFailure.TOKEN_IDS),
        (encode(["BlockStored", [1], None, [[1, 2], 3], 2]), DecodeFailure.TOKEN_IDS),
        (encode(["BlockStored", [1], None, [[1, 2, 3]], 1]), DecodeFailure.TOKEN_IDS),
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


def page(block: int, parent: object, *, tokens: object = None, medium: object = "GPU", more: tuple[object, ...] = ()):
    return ["BlockStored", [block], parent, tokens or [block, block], 2, None, medium, *more]


def test_pages_that_continue_one_another_are_one_event() -> None:
    (event,) = decode_batch(encode(page(1, None), page(2, 1), page(3, 2))).events
    assert plain(event) == BlockStored([1, 2, 3], None, [1, 1, 2, 2, 3, 3], 2, Tier.GPU, True, None, None, merged=True)
    (gone,) = decode_batch(encode(["BlockRemoved", [3], "GPU"], ["BlockRemoved", [2], "GPU"])).events
    assert gone == BlockRemoved([3, 2], Tier.GPU)


@pytest.mark.parametrize(
    "second",
    [
        page(2, 9),
        page(2, None),
        page(2, 1, medium="CPU_PINNED"),
        page(2, 1, more=({"cache_salt": "s"},)),
        page(2, 1, tokens=[[1, 2], [2, 3]]),
        ["BlockStored", [2], 1, [5], 1, None, "GPU"],
        ["BlockStored", [2, 3], 1, [5, 5, 6, 6], 2, None, "GPU"],
        ["BlockStored", [2], 1, [5, 6], 2, None],
        ["BlockRemoved", [2], "GPU"],
        ["AllBlocksCleared"],
        ["SomethingNew", [2], 1],
    ],
)
def test_pages_that_differ_are_not_joined(second: list[object]) -> None:
    events = list(decode_batch(encode(page(1, None), second, page(3, 2))).events)
    assert plain(events[0]) == BlockStored([1], None, [1, 1], 2, Tier.GPU, True, None, None)
    assert [block for event in events for block in apart(event)][-1][0] == 3


def test_what_is_joined_has_a_limit() -> None:
    pages = [page(block, block - 1 or None) for block in range(1, 2_000)]
    events = list(decode_batch(encode(*pages)).events)
    assert max(len(event.block_hashes) for event in events) <= 512
    assert [block for event in events for block in event.block_hashes] == list(range(1, 2_000))


@pytest.mark.parametrize(
    "bad",
    [
        page(2, 1, tokens=[1]),
        page(2, 1, tokens=[1, -1]),
        ["BlockStored", ["x"], 1, [5, 6], 2, None, "GPU"],
        page(2, True),
    ],
)
def test_joining_does_not_let_a_bad_page_pass(bad: list[object]) -> None:
    with pytest.raises(WireError):
        list(decode_batch(encode(page(1, None), bad)).events)


def test_a_hash_that_comes_twice_is_not_joined() -> None:
    events = list(decode_batch(encode(page(1, None), page(2, 1), page(1, 2))).events)
    assert [event.block_hashes for event in events] == [[1], [2, 1]]
