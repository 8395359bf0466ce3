from __future__ import annotations

from typing import Any

import pytest

from sgl_router.tokenization import Unrenderable, UnrenderableReason
from sgl_router.tokenization.messages import ContentFormat, declares_message_tools, normalize_messages, plain_messages

STRING, OPENAI = ContentFormat.STRING, ContentFormat.OPENAI


def one(message: dict[str, Any], content_format: ContentFormat = STRING) -> dict[str, Any]:
    return normalize_messages([message], content_format).messages[0]


def refusal(messages: Any) -> Unrenderable:
    with pytest.raises(Unrenderable) as caught:
        normalize_messages(messages, STRING)
    return caught.value


def call(arguments: Any, **fields: Any) -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": {"name": "get", "arguments": arguments}, **fields}


def test_user_messages_keep_role_and_content_only() -> None:
    message = {"role": "user", "content": "x", "name": "bob", "reasoning_content": "r", "tool_calls": []}
    assert one(message) == {"role": "user", "content": "x"}


def test_other_roles_keep_known_keys_in_the_engines_order_and_drop_null_ones() -> None:
    message = {
        "prefix": True,
        "tools": [],
        "tool_calls": [],
        "reasoning_content": "r",
        "phase": "commentary",
        "name": "n",
        "tool_call_id": None,
        "content": None,
        "role": "Assistant",
        "refusal": "dropped",
    }
    assert list(one(message).items()) == [
        ("role", "assistant"),
        ("content", ""),
        ("name", "n"),
        ("phase", "commentary"),
        ("reasoning_content", "r"),
        ("tool_calls", []),
        ("tools", []),
        ("prefix", True),
    ]


@pytest.mark.parametrize("role", ["System", "TOOL", "developer", "function", "latest_reminder", "root"])
def test_generic_roles_are_lower_cased(role: str) -> None:
    assert one({"role": role, "content": "x"})["role"] == role.lower()


def test_missing_content_is_empty_text_except_for_users() -> None:
    assert one({"role": "assistant"}) == {"role": "assistant", "content": ""}
    assert refusal([{"role": "user"}]).param == "messages[0].content"


def test_text_parts_are_joined_with_a_space_for_string_templates() -> None:
    parts = [{"type": "text", "text": "a", "cache_control": {}}, {"type": "text", "text": "b"}]
    assert one({"role": "user", "content": parts}) == {"role": "user", "content": "a b"}
    assert one({"role": "user", "content": []}) == {"role": "user", "content": ""}


def test_text_parts_stay_parts_for_openai_templates_and_the_key_moves_to_the_end() -> None:
    parts = [{"type": "text", "text": "a", "cache_control": {}}]
    normal = one({"role": "assistant", "content": parts, "name": "n"}, OPENAI)
    assert list(normal.items()) == [("role", "assistant"), ("name", "n"), ("content", [{"type": "text", "text": "a"}])]


def test_strings_are_never_made_into_parts() -> None:
    assert one({"role": "user", "content": "x"}, OPENAI)["content"] == "x"


def test_tool_results_of_text_parts_are_joined_in_both_formats() -> None:
    parts = [{"type": "text", "text": "r1"}, {"type": "text", "text": "r2"}]
    for content_format in ContentFormat:
        assert one({"role": "tool", "content": parts}, content_format)["content"] == "r1 r2"
    mixed = [*parts, {"type": "tool_reference", "name": "get"}]
    assert one({"role": "tool", "content": mixed}, OPENAI)["content"] == mixed
    assert one({"role": "tool", "content": mixed}, STRING)["content"] == "r1 r2"


def test_thinking_parts_of_assistants_vanish() -> None:
    parts = [{"type": "thinking", "thinking": "t"}, {"type": "reasoning", "text": "t"}, {"type": "text", "text": "a"}]
    assert one({"role": "assistant", "content": parts})["content"] == "a"
    assert one({"role": "assistant", "content": parts}, OPENAI)["content"] == [{"type": "text", "text": "a"}]


def test_tool_call_arguments_become_objects_and_nulls_are_kept() -> None:
    message = {"role": "assistant", "tool_calls": [call('{"b": 1, "a": null}'), {"function": {}}]}
    assert one(message)["tool_calls"] == [
        {
            "id": "c1",
            "index": None,
            "type": "function",
            "function": {"name": "get", "arguments": {"b": 1, "a": None}},
        },
        {"id": None, "index": None, "type": "function", "function": {"name": None, "arguments": None}},
    ]


def test_tool_call_fields_come_in_the_engines_order() -> None:
    entry = one({"role": "assistant", "tool_calls": [call("{}", index="2", extra=1)]})["tool_calls"][0]
    assert list(entry) == ["id", "index", "type", "function"]
    assert list(entry["function"]) == ["name", "arguments"]
    assert entry["index"] == 2


def test_arguments_of_other_roles_stay_text() -> None:
    entry = one({"role": "tool", "tool_calls": [call("not json")]})["tool_calls"][0]
    assert entry["function"]["arguments"] == "not json"


def test_integers_beyond_64_bits_become_floats_in_arguments() -> None:
    text = '{"n": [18446744073709551615, 18446744073709551616, {"m": -9223372036854775809}]}'
    arguments = one({"role": "assistant", "tool_calls": [call(text)]})["tool_calls"][0]["function"]["arguments"]
    assert arguments == {"n": [18446744073709551615, 1.8446744073709552e19, {"m": -9.223372036854776e18}]}
    assert [type(n) for n in arguments["n"][:2]] == [int, float]
    given = {"n": [18446744073709551615, 18446744073709551616, {"m": -9223372036854775809}]}
    again = one({"role": "assistant", "tool_calls": [call(given)]})["tool_calls"][0]["function"]["arguments"]
    assert again == arguments
    assert [type(n) for n in again["n"][:2]] == [int, float]


def test_tools_of_system_messages_are_callable_and_normalised_but_others_are_not() -> None:
    tools = [{"function": {"name": "f", "parameters": {"type": "varchar"}}}]
    normal = normalize_messages(
        [{"role": "system", "tools": tools}, {"role": "assistant", "tools": tools}], ContentFormat.STRING
    )
    assert normal.tools == normal.messages[0]["tools"]
    assert normal.tools[0]["function"]["parameters"] == {"type": "string"}
    assert normal.messages[1]["tools"][0]["function"]["parameters"] == {"type": "varchar"}
    large = [{"function": {"name": "f", "parameters": {"maximum": 1 << 64}}}]
    [message] = normalize_messages([{"role": "system", "tools": large}], ContentFormat.STRING).messages
    assert type(message["tools"][0]["function"]["parameters"]["maximum"]) is float


def test_the_body_is_never_changed() -> None:
    parts = [{"type": "text", "text": "a"}]
    message = {"role": "assistant", "content": parts, "tool_calls": [call("{}")], "tools": []}
    normalize_messages([message], OPENAI)
    assert message["tool_calls"] == [call("{}")]
    assert message["content"] is parts


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ({}, "messages"),
        ([], "messages"),
        (["x"], "messages[0]"),
        ([{"role": "user", "content": "x"}, {"content": "x"}], "messages[1].role"),
        ([{"role": 3}], "messages[0].role"),
        ([{"role": "User", "content": "x"}], "messages[0].role"),
        ([{"role": "bogus"}], "messages[0].role"),
        ([{"role": "user", "content": 1}], "messages[0].content"),
        ([{"role": "system", "content": {}}], "messages[0].content"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": [{"type": "bogus"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": ["x"]}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "thinking", "text": "t"}]}], "messages[0].content[0]"),
        ([{"role": "assistant", "content": [{"type": "thinking"}]}], "messages[0].content[0]"),
        ([{"role": "assistant", "content": [{"type": "tool_reference"}]}], "messages[0].content[0].name"),
        ([{"role": "tool", "tool_call_id": 1}], "messages[0].tool_call_id"),
        ([{"role": "assistant", "name": 1}], "messages[0].name"),
        ([{"role": "assistant", "phase": "x"}], "messages[0].phase"),
        ([{"role": "assistant", "reasoning_content": []}], "messages[0].reasoning_content"),
        ([{"role": "assistant", "prefix": "maybe"}], "messages[0].prefix"),
        ([{"role": "assistant", "tool_calls": {}}], "messages[0].tool_calls"),
        ([{"role": "assistant", "tool_calls": [1]}], "messages[0].tool_calls[0]"),
        ([{"role": "assistant", "tool_calls": [{}]}], "messages[0].tool_calls[0].function"),
        ([{"role": "assistant", "tool_calls": [call("{}", type="x")]}], "messages[0].tool_calls[0].type"),
        ([{"role": "assistant", "tool_calls": [call("{}", index="x")]}], "messages[0].tool_calls[0].index"),
        ([{"role": "assistant", "tool_calls": [call("")]}], "messages[0].tool_calls[0].function.arguments"),
        ([{"role": "assistant", "tool_calls": [call("[1]")]}], "messages[0].tool_calls[0].function.arguments"),
        ([{"role": "assistant", "tool_calls": [call([1])]}], "messages[0].tool_calls[0].function.arguments"),
        ([{"role": "assistant", "tool_calls": [call('{"n": NaN}')]}], "messages[0].tool_calls[0].function.arguments"),
        (
            [{"role": "assistant", "tool_calls": [call('{"n": 1' + "0" * 400 + "}")]}],
            "messages[0].tool_calls[0].function.arguments",
        ),
        ([{"role": "system", "tools": [{}]}], "messages[0].tools[0].function"),
    ],
)
def test_what_the_engine_would_refuse_is_refused_by_field(messages: Any, param: str) -> None:
    error = refusal(messages)
    assert error.reason is UnrenderableReason.INVALID_MESSAGES
    assert error.param == param
    assert param in error.message


@pytest.mark.parametrize("kind", ["image_url", "video_url", "audio_url", "input_audio"])
def test_media_parts_are_known_to_the_engine_only(kind: str) -> None:
    error = refusal([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": kind}]}])
    assert error.reason is UnrenderableReason.MEDIA
    assert error.param == "messages[0].content[1]"


def test_message_tools_are_noticed_before_validation() -> None:
    assert declares_message_tools([{"role": "System", "tools": [1]}])
    assert not declares_message_tools([{"role": "user", "tools": [1]}, {"role": "system", "tools": []}, {"role": 1}, 2])
    assert not declares_message_tools("x")


def test_plain_messages_are_what_normalizing_makes_of_them() -> None:
    raw = [
        {"role": "system", "content": "s"},
        {"content": "u", "role": "user", "name": "left out", "tool_calls": "not looked at"},
        {"role": "assistant", "content": ""},
        {"role": "tool", "content": "t"},
    ]
    plain = plain_messages(raw)
    assert plain == (["system", "user", "assistant", "tool"], ["s", "u", "", "t"])
    one_by_one = [one(message) for message in raw]
    assert [list(message.items()) for message in normalize_messages(raw, STRING).messages] == [
        list(message.items()) for message in one_by_one
    ]
    assert [(message["role"], message["content"]) for message in one_by_one] == list(zip(*plain, strict=True))


@pytest.mark.parametrize(
    "message",
    [
        {"role": "System", "content": "x"},
        {"role": "robot", "content": "x"},
        {"role": ["user"], "content": "x"},
        {"role": "user", "content": None},
        {"role": "user"},
        {"content": "x"},
        {"role": "assistant", "content": "x", "reasoning_content": "y"},
        "user",
        ["role", "content"],
        None,
        7,
    ],
)
def test_other_messages_are_not_plain(message: Any) -> None:
    assert plain_messages([{"role": "user", "content": "x"}, message]) is None
