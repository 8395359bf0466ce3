"""Large bodies in slices: the same values and the same refusals as in one go."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sgl_router.api.body import INLINE_BYTES, JsonObject, parse_chat, parse_object, read_chat
from sgl_router.api.json_slices import (
    MAX_MEMBERS,
    MAX_STRINGS,
    MAX_TOKENS,
    MAX_VALUES,
    READ_BYTES,
    _check_utf8,
    read_object,
)
from sgl_router.errors import BadRequest

MIB = 1 << 20
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])) | st.text('\\"\u00e9\U0001f600\n/u0'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner) | st.lists(st.integers(0, 9)),
    max_leaves=30,
)  # fmt: skip


def whole(body: bytes) -> dict[str, Any]:
    found = parse_object(body)
    return {name: found[name] for name in found}


def sliced(body: bytes, size: int) -> dict[str, Any]:
    raw, decoded, unread = read_object(body, slice_bytes=size)
    assert not unread
    found = JsonObject({name: msgspec.Raw(value) for name, value in raw.items()}, decoded)
    return {name: kept.tolist() if isinstance(kept := found[name], np.ndarray) else kept for name in found}


def outcome(read: Any) -> Any:
    try:
        return read()
    except BadRequest:
        return "refused"


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(st.text(max_size=4) | st.sampled_from(["tokens", "input_ids"]), values, max_size=5),
    st.integers(64, 120),
    st.booleans(),
    st.sampled_from([(",", ":"), (" , ", "  :\n"), (", ", ": ")]),
)
def test_any_object_reads_the_same(
    value: dict[str, Any], size: int, escaped: bool, separators: tuple[str, str]
) -> None:
    body = json.dumps(value, ensure_ascii=escaped, separators=separators).encode()
    assert sliced(body, size) == whole(body)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(values, st.integers(64, 120), st.data())
def test_what_is_broken_is_refused_or_means_the_same(value: Any, size: int, data: st.DataObject) -> None:
    body = bytearray(json.dumps({"a": value, "b": [value]}).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1))
        how = data.draw(st.sampled_from(["drop", "put", "swap"]))
        byte = data.draw(st.sampled_from(list(b'{}[],:"\\ 1u\n\xff\xe9ae')))
        if how == "drop" and len(body) > 1:
            del body[at]
        elif how == "put":
            body.insert(at, byte)
        else:
            body[at] = byte
    raw = bytes(body)
    assert outcome(lambda: sliced(raw, size)) == outcome(lambda: whole(raw))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(['\\u0041', "\\n", '\\"', "\\\\", "\\ud83d\\ude00", "a", "é", "\U0001f600", "\\u00e9",
                                 "ud83d", "\\ude00"]), max_size=60), st.integers(12, 40))  # fmt: skip
def test_a_string_may_be_cut_anywhere(parts: list[str], size: int) -> None:
    body = ('{"a":"' + "".join(parts) + '"}').encode()
    assert outcome(lambda: sliced(body, size)) == outcome(lambda: whole(body))


@given(st.binary(max_size=40), st.integers(1, 9))
def test_utf8_is_judged_alike_in_slices(data: bytes, size: int) -> None:
    try:
        data.decode()
        where = None
    except UnicodeDecodeError as error:
        where = error.start
    try:
        _check_utf8(data, size)
        found = None
    except BadRequest as error:
        found = int(error.message.rpartition(" ")[2])
    assert found == where


def body(extra: bytes, name: bytes = b"x") -> bytes:
    return b'{"model":"m","messages":[{"role":"user","content":"hi"}],"%b":%b}' % (name, extra)


@pytest.mark.parametrize(
    ("large", "message"),
    [
        (body(b"[" * 30 * MIB), f"more than {MAX_MEMBERS} objects and arrays"),
        (body(b'{"a":' * 5 * MIB), f"more than {MAX_MEMBERS} object members"),
        (body(b"[" + b'"",' * 10 * MIB + b"1]"), f"more than {MAX_STRINGS} strings"),
        (body(b"[" + b"1," * 15 * MIB + b"1]"), f"more than {MAX_VALUES} numbers in arrays"),
        (body(b"[" + b"true," * 6 * MIB + b"1]"), f"more than {MAX_VALUES} numbers in arrays"),
        (body(b"[[" + b"1.5," * MIB + b"1]]", b"input_ids"), f"more than {MAX_VALUES} numbers in arrays"),
        (body(b"," * 30 * MIB), "malformed"),
        (body(b"1" * 30 * MIB), "malformed"),
        (body(b"1" * 30 * MIB + b".5"), "malformed"),
        (body(b"[" * 1_000 + b" " * MIB + b"]" * 1_000), "nested too deeply"),
        (b"{" + b'"a":1,' * 40_000 + b'"a":1}', "keys; expected at most 1000"),
        (b" " * 30 * MIB, "empty"),
        (b'"' + b"a" * 30 * MIB + b'"', "is a string"),
        (b'{"a":"' + b"a" * 30 * MIB, "truncated"),
        (b'{"a":"' + b"\xc3\xa9" * MIB + b'\xff"}', f"not UTF-8: invalid start byte at byte {2 * MIB + 6}"),
        (b'{"a":"' + b"a" * MIB + b'","a":1}', "'a' is given more than once"),
        (b'{"a":"' + b"a" * MIB + b'\\ud83d"}', "half of a surrogate pair"),
        (b'{"a":"' + b"a" * MIB + b'" 1}', "malformed"),
        (b'{"a":["' + b"a" * MIB + b'",]}', "malformed"),
        (b'{"a":["' + b"a" * MIB + b'"]]', "malformed"),
        (b'{"a":{"' + b"a" * MIB + b'":1}}}', "malformed"),
        (b'{"' + b"a" * MIB + b'" "b"}', "malformed"),
    ],
)
def test_a_hostile_body_is_refused(large: bytes, message: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse_chat(large)
    assert message in refused.value.message
    assert len(refused.value.message) < 300


@pytest.mark.parametrize(
    "content",
    ["a " * MIB, "é" * MIB, "\U0001f600" * (MIB // 2), "\n" * MIB, '"' * MIB, "\\" * MIB, "a" * 7 * MIB],
)
@pytest.mark.parametrize("escaped", [True, False])
def test_a_large_text_is_read(content: str, escaped: bool) -> None:
    messages = [{"role": "user", "content": "before"}, {"role": "user", "content": content}, {"role": "x"}]
    raw = json.dumps({"model": "m", "messages": messages}, ensure_ascii=escaped).encode()
    chat = parse_chat(raw)
    if len(raw) <= READ_BYTES:
        assert chat["messages"] == messages
    else:
        assert dict(chat.unread) == {"messages": ord("[")}


def test_many_messages_are_read() -> None:
    messages = [{"role": "user", "content": f"message {n}, with a comma"} for n in range(20_000)]
    raw = json.dumps({"model": "m", "messages": messages, "stream": True}).encode()
    chat = parse_chat(raw)
    assert (chat["messages"], chat["stream"], list(chat)) == (messages, True, ["model", "messages", "stream"])


def test_what_no_model_has_room_for_is_not_read() -> None:
    chat = parse_chat(b'{"messages":[{"role":"user","content":"%b"}],"model":"m"}' % (b"a " * 15 * MIB))
    assert chat["model"] == "m"
    assert "messages" in chat
    with pytest.raises(BadRequest, match="too large"):
        chat["messages"]
    with pytest.raises(BadRequest, match="'messages' is a string"):
        parse_chat(b'{"messages":"%b","model":"m"}' % (b"a" * 9 * MIB)[: 9 * MIB])


@pytest.mark.parametrize("count", [100_000, 1_000_000, MAX_TOKENS + 1])
def test_token_ids_are_numbers_as_many_as_a_context_takes(count: int) -> None:
    chat = parse_chat(body(b"[" + b"7," * (count - 1) + b" 9 ]", b"input_ids"))
    if count > MAX_TOKENS:
        assert "input_ids" in chat.unread
        return
    ids = chat["input_ids"]
    assert isinstance(ids, list) == (count <= MAX_VALUES)
    assert (len(ids), ids[0], ids[-1]) == (count, 7, 9)


@pytest.mark.parametrize("tail", [b"1.5]", b"true]", b"-1]", b"18446744073709551615]", b"[1]]", b'"a"]', b"]", b"1]]"])
def test_what_is_no_array_of_token_ids_is_read_as_what_it_is(tail: bytes) -> None:
    raw = body(b"[" + b"7," * 150_000 + tail, b"input_ids")
    try:
        expected = json.loads(raw)["input_ids"]
    except ValueError:
        with pytest.raises(BadRequest):
            parse_chat(raw)
        return
    assert parse_chat(raw)["input_ids"] == expected


async def test_the_loop_goes_on_while_a_large_body_is_read() -> None:
    import asyncio

    reading = asyncio.ensure_future(read_chat(body(b'"%b"' % (b'\\"' * 4 * MIB))))
    turns = 0
    while not reading.done():
        await asyncio.sleep(0)
        turns += 1
    assert (await reading)["model"] == "m"
    assert turns > 20


def test_each_step_over_a_large_body_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that any one call is given, rather than time: no piece is larger than a slice."""
    import sgl_router.api.json_slices as module

    sizes = []

    def spy(decode: Any) -> Any:
        def call(piece: bytes) -> Any:
            sizes.append(len(piece))
            return decode(piece)

        return call

    for name in ("_value", "_check", "_integers"):
        monkeypatch.setattr(module, name, spy(getattr(module, name)))
    for large in (
        body(b'"%b"' % (b"\\u0041" * MIB)),
        body(b'["%b",%b1]' % (b"a" * MIB, b"1," * 90_000)),
        body(b'{"%b":{"b":[%b"c"]}}' % (b"a" * MIB, b'{"d":"e"},' * 20_000)),
        body(b"[" + b"12345," * 500_000 + b"1]", b"tokens"),
    ):
        assert len(large) > INLINE_BYTES
        parse_chat(large)
    assert max(sizes) <= module.SLICE_BYTES + 2
