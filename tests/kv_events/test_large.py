"""Payloads taken apart by hand must say what msgspec says they say."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sgl_router.kv_events import DecodeFailure, WireError, decode_batch
from sgl_router.kv_events.follow import large
from sgl_router.kv_events.follow.large import LargeBatch
from sgl_router.kv_events.follow.wire import BlockRemoved, BlockStored, Event

encode = msgspec.msgpack.encode


@pytest.fixture(params=["split by msgspec", "split by hand"], autouse=True)
def small_slices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes at which a few bytes are large."""
    monkeypatch.setattr(large, "_SLICE_BYTES", 64)
    monkeypatch.setattr(large, "_SLICE_EVENTS", 3)
    monkeypatch.setattr(large, "_SLICE_TOKENS", 6)
    monkeypatch.setattr(large, "_SLICE_BLOCKS", 4)
    monkeypatch.setattr(large, "_SLICE_OBJECTS", 5)
    monkeypatch.setattr(large, "_LARGE_EVENT", 90)
    monkeypatch.setattr(large, "_KEPT_EVENTS", 1)
    monkeypatch.setattr(large, "_SPLIT_BYTES", 0 if request.param == "split by hand" else 1 << 20)


def apart(events: list[Event]) -> list[object]:
    """An entry for each block: how they are cut and joined is another matter."""
    found: list[object] = []
    for event in events:
        if isinstance(event, BlockStored):
            each = len(event.token_ids) // max(len(event.block_hashes), 1)
            for index in range(len(event.block_hashes)):
                piece = event.piece(index, index + 1)
                assert len(piece.token_ids) == each
                found.append(("stored", *piece._replace(token_ids=list(piece.token_ids), left_out=0, merged=False)))
            found += ["left out"] * event.left_out
        elif isinstance(event, BlockRemoved):
            found += [("removed", one, event.tier, event.group) for one in event.block_hashes]
        else:
            found.append("cleared")
    return found


def in_slices(payload: bytes | memoryview) -> list[Event]:
    """As the pump does it: all is checked before any of it is taken."""
    checked = [part for part in LargeBatch(payload).parts() if part is not None]
    return [event for part in checked for event in part]


def whole(payload: bytes) -> list[Event]:
    return list(decode_batch(payload).events)


def outcome(decode: Any, payload: bytes) -> object:
    try:
        return apart(decode(payload))
    except WireError as error:
        return error.reason


def a_hash(rng: random.Random) -> object:
    return rng.choice([rng.randrange(-(2**63), 2**63), rng.getrandbits(64), rng.randrange(200), rng.randbytes(32)])


def a_store(rng: random.Random) -> object:
    page, blocks = rng.randint(1, 5), rng.randint(0, 12)
    hashes = [a_hash(rng) for _ in range(blocks)]
    ids = [rng.choice([rng.randrange(100), rng.getrandbits(32), rng.getrandbits(40)]) for _ in range(2 * page * blocks)]
    tokens: list[object] = list(ids[: page * blocks])
    if rng.random() < 0.2:
        tokens = [list(pair) for pair in zip(ids[0::2], ids[1::2], strict=True)]
    parent = rng.choice([None, a_hash(rng)])
    medium = rng.choice(["GPU", "CPU", None, "TAPE"])
    if rng.random() < 0.5:
        more = rng.choice([[], [{"cache_salt": "s"}], [None, [None] * blocks, 1, "mamba"]])
        return ["BlockStored", hashes, parent, tokens, page, None, medium, *more]
    fields = {
        "type": "BlockStored",
        "block_hashes": hashes,
        "parent_block_hash": parent,
        "token_ids": tokens,
        "block_size": page,
        "medium": medium,
        "extra_keys": rng.choice([None, [None] * blocks, "odd"]),
        "group_idx": rng.choice([None, 0, 3]),
        "invented_later": rng.choice([None, list(range(rng.randrange(40))), "x" * 90]),
    }
    return dict(rng.sample(list(fields.items()), len(fields)))


def an_event(rng: random.Random) -> object:
    gone = [a_hash(rng) for _ in range(rng.randrange(30))]
    return rng.choice(
        [
            a_store(rng),
            a_store(rng),
            ["BlockRemoved", gone],
            ["BlockRemoved", gone[:1], "GPU", 2],
            {"type": "BlockRemoved", "block_hashes": gone, "medium": "CPU"},
            ["AllBlocksCleared"],
            {"type": "AllBlocksCleared"},
            ["New", [1] * 60],
            {"type": "New", "x": {"y": [1] * 60}},
        ]
    )


def a_batch(rng: random.Random) -> bytes:
    events = [an_event(rng) for _ in range(rng.randrange(9))]
    return encode([rng.choice([1, 2.5]), events, rng.choice([None, 0, 3]), *range(rng.randrange(3))])


@pytest.mark.parametrize("seed", range(300))
def test_slices_say_what_the_whole_says(seed: int) -> None:
    payload = a_batch(random.Random(seed))
    assert apart(in_slices(payload)) == apart(whole(payload))
    assert apart(in_slices(memoryview(payload))) == apart(whole(payload))
    assert LargeBatch(payload).ts == decode_batch(payload).ts


@pytest.mark.parametrize("seed", range(300))
def test_what_is_broken_is_broken_in_slices_too(seed: int) -> None:
    rng = random.Random(seed)
    payload = bytearray(a_batch(rng))
    for kind in ("flip", "flip", "flip", "cut", "add"):
        broken = payload.copy()
        where = rng.randrange(len(broken))
        if kind == "flip":
            broken[where] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del broken[where:]
        else:
            broken += b"\x01"
        mine, theirs = outcome(in_slices, bytes(broken)), outcome(whole, bytes(broken))
        if isinstance(theirs, DecodeFailure):
            # Why it is refused may differ: by the first fault on the way. And a field that nothing is made of is not
            # decoded at all in a large event.
            assert isinstance(mine, DecodeFailure) or theirs is DecodeFailure.MSGPACK
        else:
            assert mine == theirs


@settings(max_examples=200, suppress_health_check=list(HealthCheck), deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_only_wire_errors(payload: bytes) -> None:
    outcome(in_slices, payload)
    outcome(in_slices, b"\x93\x01\xdc\x00\x03" + payload)


def stored(blocks: int, **fields: Any) -> dict[str, Any]:
    return {
        "type": "BlockStored",
        "block_hashes": list(range(1, blocks + 1)),
        "parent_block_hash": None,
        "token_ids": list(range(2 * blocks)),
        "block_size": 2,
        "medium": "GPU",
    } | fields


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"token_ids": [1] * 99}, DecodeFailure.TOKEN_IDS),
        ({"token_ids": "none"}, DecodeFailure.TOKEN_IDS),
        ({"token_ids": [1] * 79 + [-1]}, DecodeFailure.TOKEN_IDS),
        ({"block_size": "two"}, DecodeFailure.EVENT_SHAPE),
        ({"block_hashes": [1] * 39 + ["a"]}, DecodeFailure.EVENT_SHAPE),
        ({"parent_block_hash": "p"}, DecodeFailure.EVENT_SHAPE),
        ({"parent_block_hash": b"p" * 200}, DecodeFailure.EVENT_SHAPE),  # too long to be read: not taken for no parent
        ({"cache_salt": "s" * 200}, DecodeFailure.EVENT_SHAPE),
    ],
)
def test_a_large_event_that_is_wrong_names_its_reason(fields: dict[str, Any], reason: DecodeFailure) -> None:
    with pytest.raises(WireError) as caught:
        in_slices(encode([1.0, [stored(40, **fields)], 0]))
    assert caught.value.reason is reason


def test_a_picture_in_a_large_event_leaves_out_what_follows() -> None:
    keys = [["salt"], None, None, [["hash", 0]], *[None] * 36]
    events = in_slices(encode([1.0, [stored(40, extra_keys=keys)], 0]))
    assert events[0].cache_salt == "salt"  # type: ignore[union-attr]
    assert [len(event.block_hashes) for event in events][:2] == [3, 0]  # type: ignore[union-attr]
    # Later pieces hang on a block that was left out: they find no parent.
    assert events[2].parent_hash == 6  # type: ignore[union-attr]


def test_no_piece_is_large() -> None:
    events = in_slices(encode([1.0, [stored(40)], 0]))
    assert max(len(event.token_ids) for event in events) <= 6  # type: ignore[union-attr]
    assert [event.parent_hash for event in events] == [None, *range(3, 40, 3)]  # type: ignore[union-attr]


def test_more_events_than_a_batch_may_have_are_refused() -> None:
    payload = b"\x93\x01\xdd" + (1 << 20).to_bytes(4, "big") + b"\x91\x01" * (1 << 20) + b"\x00"
    with pytest.raises(WireError) as caught:
        LargeBatch(payload)
    assert caught.value.reason is DecodeFailure.TOO_LARGE
