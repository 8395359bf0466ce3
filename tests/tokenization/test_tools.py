from __future__ import annotations

from typing import Any

import pytest

from sgl_router.tokenization import Unrenderable
from sgl_router.tokenization.tools import choose_tools, dump_request_tools, dump_tools


def tool(name: str, **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


def dump(raw: dict[str, Any], **options: Any) -> dict[str, Any]:
    return dump_tools([raw], "tools", normalize=True, **options)[0]


def pairs(value: dict[str, Any]) -> list[tuple[str, Any]]:
    return list(value.items())


def test_the_clients_key_order_is_kept_and_missing_keys_are_appended_as_null() -> None:
    dumped = dump({"function": {"parameters": {"z": 1, "a": 2}, "name": "get", "extra": 1}, "type": "custom", "x": 1})
    assert pairs(dumped)[0] == ("type", "custom")
    assert pairs(dumped["function"]) == [("parameters", {"z": 1, "a": 2}), ("name", "get"), ("description", None)]
    assert pairs(dumped)[2] == ("defer_loading", None)
    assert list(dumped["function"]["parameters"]) == ["z", "a"]


def test_the_type_defaults_to_function() -> None:
    assert dump({"function": {"name": "get"}})["type"] == "function"


def test_strict_appears_when_given_and_a_null_one_does_not() -> None:
    assert pairs(dump(tool("f", strict=False))["function"])[1] == ("strict", False)
    assert "strict" not in dump(tool("f", strict=None))["function"]


def test_defer_loading_of_the_tool_is_passed_on_to_its_function() -> None:
    dumped = dump({**tool("f"), "defer_loading": True})
    assert dumped["defer_loading"] is True
    assert pairs(dumped["function"])[-1] == ("defer_loading", True)
    own = dump({**tool("f", defer_loading=False), "defer_loading": True})
    assert own["function"]["defer_loading"] is False


def test_loose_schema_types_are_rewritten_without_touching_the_body() -> None:
    raw = tool("f", parameters={"type": "dict", "properties": {"q": {"type": "varchar(20)"}}})
    dumped = dump(raw)
    assert dumped["function"]["parameters"] == {"type": "object", "properties": {"q": {"type": "string"}}}
    assert raw["function"]["parameters"]["type"] == "dict"


def test_dumping_twice_moves_null_keys_behind_the_others() -> None:
    raw = tool("f", description=None, parameters={"a": None})
    assert list(dump(raw)["function"]) == ["name", "description", "parameters"]
    assert list(dump(raw, twice=True)["function"]) == ["name", "parameters", "description"]
    deferred = {**tool("f"), "defer_loading": True}
    assert list(dump(deferred, twice=True)["function"]) == ["name", "defer_loading", "description", "parameters"]
    assert dump(raw, twice=True)["function"]["parameters"] == {"a": None}


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        ("x", "tools"),
        ([1], "tools[0]"),
        ([{}], "tools[0].function"),
        ([{"type": 1, "function": {"name": "f"}}], "tools[0].type"),
        ([{"function": {}}], "tools[0].function.name"),
        ([{"function": {"name": "f", "description": 1}}], "tools[0].function.description"),
        ([{"function": {"name": "f", "strict": "maybe"}}], "tools[0].function.strict"),
        ([{"function": {"name": "f"}, "defer_loading": []}], "tools[0].defer_loading"),
    ],
)
def test_malformed_tools_are_refused_by_field(raw: Any, param: str) -> None:
    with pytest.raises(Unrenderable) as caught:
        dump_tools(raw, "tools", normalize=True)
    assert caught.value.param == param


GET, PUT = dump(tool("get")), dump(tool("put"))


@pytest.mark.parametrize(
    ("choice", "declared", "expected"),
    [
        (None, True, [GET, PUT]),
        ("auto", True, [GET, PUT]),
        ("required", True, [GET, PUT]),
        ("none", True, None),
        ({"type": "function", "function": {"name": "put"}}, True, [PUT]),
        ({"function": {"name": "get"}}, True, [GET]),
    ],
)
def test_choice_decides_what_the_template_sees(choice: Any, declared: bool, expected: Any) -> None:
    assert choose_tools(choice, [GET, PUT], [], declared=declared) == expected


def test_without_tools_nothing_is_seen() -> None:
    assert choose_tools(None, [], [], declared=False) is None
    assert choose_tools(None, [], [], declared=True) is None
    assert choose_tools("auto", [], [GET], declared=True) is None


def test_a_named_tool_of_a_message_leaves_none_for_the_template() -> None:
    named = {"type": "function", "function": {"name": "put"}}
    assert choose_tools(named, [GET], [PUT], declared=True) is None


@pytest.mark.parametrize(
    ("choice", "tools", "message_tools", "param"),
    [
        ("bogus", [GET], [], "tool_choice"),
        (1, [GET], [], "tool_choice"),
        ("required", [], [], "tools"),
        ({"type": "x", "function": {"name": "get"}}, [GET], [], "tool_choice.type"),
        ({"function": 1}, [GET], [], "tool_choice.function"),
        ({"function": {"name": "get"}}, [], [], "tools"),
        ({"function": {"name": "nope"}}, [GET], [], "tool_choice.function.name"),
        ({"function": {}}, [GET], [], "tool_choice.function.name"),
        (None, [GET], [GET], "tools"),
    ],
)
def test_impossible_choices_are_refused_by_field(
    choice: Any, tools: list[Any], message_tools: list[Any], param: str
) -> None:
    with pytest.raises(Unrenderable) as caught:
        choose_tools(choice, tools, message_tools, declared=True)
    assert caught.value.param == param


@pytest.mark.parametrize("twice", [False, True])
def test_a_requests_tools_are_dumped_once_and_the_same(twice: bool) -> None:
    raw = [{"type": "function", "function": {"name": "get", "parameters": {"type": "int", "x": [1.0, 1, True, None]}}}]
    first = dump_request_tools(raw, twice=twice)
    assert first == dump_tools(raw, "tools", normalize=True, twice=twice)
    assert dump_request_tools([dict(tool) for tool in raw], twice=twice) is first
    raw[0]["function"]["parameters"]["x"] = [1, 1, True, None]
    assert dump_request_tools(raw, twice=twice) is not first


@pytest.mark.parametrize("extra", ["x" * 100_000, "\ud800"])
def test_tools_that_cannot_be_kept_are_dumped_each_time(extra: Any) -> None:
    raw = [{"type": "function", "function": {"name": "get", "parameters": {"extra": extra}}}]
    assert dump_request_tools(raw, twice=False) == dump_tools(raw, "tools", normalize=True)


@pytest.mark.parametrize("twice", [False, True])
def test_integers_beyond_64_bits_become_floats_in_tools(twice: bool) -> None:
    parameters: dict[str, Any] = {"a": [(1 << 64) - 1, 1 << 64], "b": {"maximum": -(1 << 63) - 1}}
    raw = [{"type": "function", "function": {"name": "get", "parameters": parameters}}]
    [tool] = dump_request_tools(raw, twice=twice)
    assert tool["function"]["parameters"] == {
        "a": [18446744073709551615, 1.8446744073709552e19],
        "b": {"maximum": -9.223372036854776e18},
    }
    assert [type(n) for n in tool["function"]["parameters"]["a"]] == [int, float]
    parameters["a"] = [10**400]
    with pytest.raises(Unrenderable) as caught:
        dump_request_tools(raw, twice=twice)
    assert caught.value.param == "tools"
