from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_router.api.body import parse_chat, parse_object
from sgl_router.api.json_slices import MAX_MEMBERS, MAX_STRINGS
from sgl_router.errors import BadRequest

GOOD = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def chat(**changes: object) -> bytes:
    return json.dumps(GOOD | changes).encode()


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (" , ", "  :\n")])
def test_a_good_body(separators: tuple[str, str]) -> None:
    body = json.dumps(GOOD | {"stream": True, "x": {"a": [1]}}, separators=separators).encode()
    parsed = parse_chat(body)
    assert (parsed["model"], parsed["messages"], parsed["stream"]) == ("m", GOOD["messages"], True)
    assert parsed["x"] == {"a": [1]}
    assert set(parsed) == {"model", "messages", "stream", "x"}


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        (b"", "the request body is empty; expected a JSON object", None),
        (b"  \n", "the request body is empty; expected a JSON object", None),
        (b'{"model": "m\xff"}', "the request body is not UTF-8: invalid start byte at byte 12", None),
        (b"[1]", "the request body is an array; expected a JSON object", None),
        (b'"x"', "the request body is a string; expected a JSON object", None),
        (b"null", "the request body is null; expected a JSON object", None),
        (b"true", "the request body is a boolean; expected a JSON object", None),
        (b"12", "the request body is a number; expected a JSON object", None),
        (b'{"model": "m", "mess', "the JSON ends too early: it is truncated", None),
        (b'{"model": "\\ud83d"}', "the JSON is malformed at byte 11: half of a surrogate pair", None),
        (b'{"model": "\\ud83d\\ude00 \\uDBff"}', "the JSON is malformed at byte 24: half of a surrogate pair", None),
        (b'{"model": "m",}', "the JSON is malformed at byte 14", None),
        (b'{"model": nope}', "the JSON is malformed", None),
        (b'{"a": NaN}', "the JSON is malformed", None),
        (b"{} extra", "the JSON is malformed at byte", None),
        (b"{}", "'model' is missing; expected a string", "model"),
        (b'{"model": "m"}', "'messages' is missing; expected an array", "messages"),
        (chat(model=None), "'model' is null; expected a string", "model"),
        (chat(model=["m"]), "'model' is an array; expected a string", "model"),
        (chat(model=""), "'model' is an empty string; expected a model id", "model"),
        (chat(messages="hi"), "'messages' is a string; expected an array", "messages"),
        (chat(messages={}), "'messages' is an object; expected an array", "messages"),
        (chat(stream="yes"), "'stream' is a string; expected a boolean", "stream"),
        (chat(stream=1), "'stream' is a number; expected a boolean", "stream"),
        (chat(stream=None), "'stream' is null; expected a boolean", "stream"),
        (b'{"model":"a","model":"b","messages":[]}', "'model' is given more than once", "model"),
        (b'{"model":"a","messages":[],"model":"a"}', "'model' is given more than once", "model"),
        (b'{"model":"a","messages":[],"mod\\u0065l":"b"}', "'model' is given more than once", "model"),
        (b'{"a":1,"a":1,"model":"a","messages":[]}', "'a' is given more than once", "a"),
        (b'{"a":12,"a":1,"model":"a","messages":[]}', "'a' is given more than once", "a"),
        (b'{"a" : 1 ,"a":12,"model":"a","messages":[]}', "'a' is given more than once", "a"),
        (b' {\n"a\\"" : 1,\t"b":"}", "a\\u0022" :1} ', "'a\"' is given more than once", 'a"'),
        (b'{"a": 1 , "a": [{"a": 2}] }', "'a' is given more than once", "a"),
        (b'{"model":"m","messages":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "nested too deeply", None),
    ],
)
def test_each_bad_body_says_what_is_wrong(body: bytes, message: str, param: str | None) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_chat(body)
    assert message in caught.value.message
    assert caught.value.param == param or (param is None and "nested" in message)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (b'"%x":0', "object members"),
        (b'"%x" \n:0', "object members"),
        (b'"%x\\\\":0', "object members"),
        (b'"\\"%x":0', "object members"),
    ],
)
def test_too_many_members_are_refused_however_they_are_written(node: bytes, message: str) -> None:
    members = b",".join(node % number for number in range(MAX_MEMBERS))
    with pytest.raises(BadRequest, match=message):
        parse_object(b'{"x":{%b}}' % members)


@pytest.mark.parametrize("node", [b"[]", b"{}", b" [ 0]", b'[{},""]'])
def test_too_many_objects_and_arrays_are_refused(node: bytes) -> None:
    with pytest.raises(BadRequest, match="objects and arrays"):
        parse_object(b'{"x":[%b]}' % b",".join([node] * MAX_MEMBERS))


def test_too_many_strings_are_refused_where_there_is_much_else() -> None:
    with pytest.raises(BadRequest, match="strings"):
        parse_object(b'{"x":[%b"[["]}' % (b'"[",' * MAX_STRINGS))


@pytest.mark.parametrize("text", ['"a": 1, ', "\\", "[{:", '\\"[":'])
def test_what_a_text_is_made_of_is_not_counted(text: str) -> None:
    content = text * MAX_MEMBERS
    parsed = parse_chat(chat(messages=[{"role": "user", "content": content}, *[{}] * (MAX_MEMBERS // 2)]))
    assert parsed["messages"][0]["content"] == content


def test_keys_written_with_escapes_are_fine_when_given_once() -> None:
    assert parse_chat(b'{"mod\\u0065l":"a","messages":[]}')["model"] == "a"


def test_equal_keys_inside_values_are_not_repetitions() -> None:
    assert parse_object(b'{"a":{"a":1,"b":2},"b":[{"a":1},{"a":1}]}')["a"] == {"a": 1, "b": 2}


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200)
@given(st.dictionaries(st.text(max_size=8), _json, max_size=6), st.booleans(), st.sampled_from([None, 1]))
def test_every_object_is_read_as_the_standard_library_reads_it(
    value: dict[str, object], ascii: bool, indent: int | None
) -> None:
    body = json.dumps(value, ensure_ascii=ascii, indent=indent)
    try:
        encoded = body.encode()
    except UnicodeEncodeError:
        return
    assert dict(parse_object(encoded)) == json.loads(body)


_space = st.sampled_from(["", " ", "\n\t", "\r\n  "])
_key = st.sampled_from(["a", "b", "a\\", 'b"', "å"]).map(json.dumps) | st.sampled_from(['"\\u0061"', '"å"', '"a b"'])


@settings(max_examples=200)
@given(st.lists(st.tuples(_space, _key, _space, _space, _json.map(json.dumps), _space), min_size=1, max_size=5))
def test_a_repeated_key_is_found_whatever_the_white_space(pairs: list[tuple[str, ...]]) -> None:
    body = "{" + ",".join("{}{}{}:{}{}{}".format(*pair) for pair in pairs) + "}"
    keys = [json.loads(pair[1]) for pair in pairs]
    if len(keys) == len(set(keys)):
        assert dict(parse_object(body.encode())) == json.loads(body)
    else:
        with pytest.raises(BadRequest, match="given more than once"):
            parse_object(body.encode())


@settings(max_examples=300)
@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:\\ "amodel1entru', max_size=40).map(str.encode))
def test_arbitrary_bytes_raise_only_bad_request(body: bytes) -> None:
    try:
        parse_chat(body)
    except BadRequest as error:
        assert error.status == 400
