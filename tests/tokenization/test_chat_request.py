from __future__ import annotations

from typing import Any

import pytest

from sgl_router.tokenization import Unrenderable, UnrenderableReason
from sgl_router.tokenization.chat_request import ChatCall, Endpoint, TemplateTraits, parse_chat
from sgl_router.tokenization.messages import ContentFormat

TRAITS = TemplateTraits(ContentFormat.STRING)
USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "partial", "tool_calls": []}


def parse(endpoint: Endpoint = Endpoint.CHAT, traits: TemplateTraits = TRAITS, **body: Any) -> ChatCall:
    return parse_chat({"messages": [USER], **body}, traits, endpoint)


def test_a_plain_chat_opens_the_assistant_turn_with_no_variables() -> None:
    call = parse()
    assert call == ChatCall([USER], None, {}, None, True, None, False)


def test_a_trailing_assistant_message_becomes_a_bare_user_message() -> None:
    call = parse(messages=[USER, ASSISTANT])
    assert call.messages[-1] == {"role": "user", "content": "partial"}
    assert call.assistant_prefix is None


def test_continue_final_message_takes_the_assistants_text_off() -> None:
    call = parse(messages=[USER, ASSISTANT], continue_final_message=True)
    assert call.messages == [USER]
    assert call.assistant_prefix == "partial"


@pytest.mark.parametrize("value", [True, 1, "true", "Yes"])
def test_continue_final_message_is_read_leniently(value: Any) -> None:
    assert parse(messages=[USER, ASSISTANT], continue_final_message=value).assistant_prefix == "partial"


def test_continue_final_message_needs_an_assistant_message_of_text() -> None:
    assert parse(messages=[USER], continue_final_message=True).messages == [USER]
    parts = {"role": "assistant", "content": [{"type": "text", "text": "p"}]}
    call = parse_chat({"messages": [USER, parts], "continue_final_message": True}, TemplateTraits(ContentFormat.OPENAI))
    assert call.messages[-1]["role"] == "assistant"
    assert call.assistant_prefix is None


def test_continuing_the_only_message_leaves_nothing_to_render() -> None:
    with pytest.raises(Unrenderable, match="messages"):
        parse(messages=[ASSISTANT], continue_final_message=True)


def test_reasoning_effort_is_a_variable_and_sets_the_thinking_defaults() -> None:
    assert parse(reasoning_effort="low").variables == {
        "reasoning_effort": "low",
        "thinking": True,
        "enable_thinking": True,
    }
    assert parse(reasoning_effort="none").variables == {
        "reasoning_effort": "none",
        "thinking": False,
        "enable_thinking": False,
    }


@pytest.mark.parametrize(("given", "seen"), [(0.5, 0.5), (0, 0.0), ("0.25", 0.25)])
def test_fine_grained_efforts_are_floats(given: Any, seen: float) -> None:
    effort = parse(reasoning_effort=given).variables["reasoning_effort"]
    assert effort == seen
    assert isinstance(effort, float)


@pytest.mark.parametrize("bad", ["bogus", 1.5, -0.1, True, [], float("nan")])
def test_other_efforts_are_refused(bad: Any) -> None:
    with pytest.raises(Unrenderable) as caught:
        parse(reasoning_effort=bad)
    assert caught.value.param == "reasoning_effort"


def test_template_kwargs_win_over_what_effort_implies() -> None:
    variables = parse(reasoning_effort="none", chat_template_kwargs={"enable_thinking": True}).variables
    assert variables["enable_thinking"] is True
    assert variables["thinking"] is False


def test_integers_beyond_64_bits_become_floats_in_template_arguments() -> None:
    number = parse(chat_template_kwargs={"x": {"y": [1 << 64]}}).variables["x"]["y"][0]
    assert (number, type(number)) == (float(1 << 64), float)


def test_effort_in_template_kwargs_wins_except_when_null() -> None:
    kwargs: dict[str, Any] = {"chat_template_kwargs": {"reasoning_effort": "high"}, "reasoning_effort": "low"}
    assert parse(**kwargs).variables["reasoning_effort"] == "high"
    kwargs["chat_template_kwargs"] = {"reasoning_effort": None}
    assert parse(**kwargs).variables["reasoning_effort"] == "low"
    # The tokenize endpoint hands it to the template as it is.
    assert parse(Endpoint.TOKENIZE, **kwargs).variables["reasoning_effort"] is None


@pytest.mark.parametrize(
    ("reasoning", "effort", "thinking"),
    [
        ({"effort": "low"}, "low", True),
        ({"reasoning_effort": "none"}, "none", False),
        ({"effort": 0.3}, 0.3, True),
        ({"effort": "0.4"}, 0.4, True),
        ({"enabled": True}, None, True),
        ({"enable": "yes"}, None, True),
        ({"enabled": "off", "enable": True}, None, None),
        ({}, None, None),
        ("ignored", None, None),
    ],
)
def test_the_reasoning_object_is_folded_in(reasoning: Any, effort: Any, thinking: bool | None) -> None:
    variables = parse(reasoning=reasoning).variables
    assert variables.get("reasoning_effort") == effort
    assert variables.get("thinking") is thinking
    assert variables.get("enable_thinking") is thinking


@pytest.mark.parametrize("effort", ["zzz", [], True])
def test_a_bad_effort_in_the_reasoning_object_is_refused(effort: Any) -> None:
    with pytest.raises(Unrenderable) as caught:
        parse(reasoning={"effort": effort})
    assert caught.value.param == "reasoning.effort"


def test_server_defaults_fill_what_the_request_left_unset() -> None:
    traits = TemplateTraits(ContentFormat.STRING, default_kwargs={"foo": 1, "reasoning_effort": "high"})
    assert parse(traits=traits).variables == {"foo": 1, "reasoning_effort": "high"}
    variables = parse(traits=traits, reasoning_effort="low", chat_template_kwargs={"foo": 2}).variables
    assert variables["foo"] == 2
    # The default sits in the template kwargs, which win over the request's own effort there.
    assert variables["reasoning_effort"] == "high"


def test_low_effort_switches_on_the_templates_own_variable() -> None:
    traits = TemplateTraits(ContentFormat.STRING, low_effort_variable="low_effort")
    assert parse(traits=traits, reasoning_effort="low").variables["low_effort"] is True
    assert "low_effort" not in parse(traits=traits, reasoning_effort="high").variables
    kept = parse(traits=traits, reasoning_effort="low", chat_template_kwargs={"low_effort": False})
    assert kept.variables["low_effort"] is False


def test_arguments_of_the_rendering_call_are_no_variables() -> None:
    kwargs = {"padding": True, "max_length": 2, "continue_final_message": False, "documents": [{"title": "t"}]}
    call = parse(chat_template_kwargs={**kwargs, "foo": 1})
    assert call.variables == {"foo": 1}
    assert call.documents == [{"title": "t"}]


@pytest.mark.parametrize(
    "kwargs",
    [
        {"tools": []},
        {"messages": 1},
        {"add_generation_prompt": False},
        {"continue_final_message": True},
        {"documents": "x"},
    ],
)
def test_colliding_template_kwargs_are_template_errors(kwargs: dict[str, Any]) -> None:
    with pytest.raises(Unrenderable) as caught:
        parse(chat_template_kwargs=kwargs)
    assert caught.value.reason is UnrenderableReason.TEMPLATE_ERROR
    assert caught.value.param == f"chat_template_kwargs.{next(iter(kwargs))}"


def test_templates_from_requests_are_refused() -> None:
    with pytest.raises(Unrenderable, match="chat_template"):
        parse(chat_template_kwargs={"chat_template": "x"})


def test_template_kwargs_must_be_an_object_unless_effort_replaces_them() -> None:
    with pytest.raises(Unrenderable) as caught:
        parse(chat_template_kwargs=[1])
    assert caught.value.param == "chat_template_kwargs"
    assert parse(chat_template_kwargs=[1], reasoning_effort="low").variables["thinking"] is True
    with pytest.raises(Unrenderable):
        parse(Endpoint.TOKENIZE, chat_template_kwargs=[1], reasoning_effort="low")


def test_tools_are_left_out_by_default_without_any_and_by_choice() -> None:
    tools = [{"type": "function", "function": {"name": "get"}}]
    assert parse().tools is None
    assert parse(tools=None).tools is None
    assert parse(tools=[]).tools is None
    assert len(parse(tools=tools).tools or []) == 1
    assert parse(tools=tools, tool_choice="none").tools is None


def test_tools_of_a_system_message_make_the_choice_automatic() -> None:
    system = {"role": "system", "content": "s", "tools": [{"function": {"name": "get"}}]}
    call = parse(messages=[system, USER], tool_choice=None)
    assert call.tools is None
    assert call.messages[0]["tools"][0]["function"]["name"] == "get"


def test_the_tokenize_endpoint_can_render_messages_as_given() -> None:
    messages = [USER, ASSISTANT]
    given = parse(Endpoint.TOKENIZE, messages=messages, add_generation_prompt=False)
    assert given.messages[-1]["role"] == "assistant"
    assert not given.add_generation_prompt
    assert not given.add_special_tokens
    assert parse(Endpoint.TOKENIZE, add_generation_prompt=True, add_special_tokens=True).add_special_tokens
    # Without add_generation_prompt it renders as for a completion, whatever add_special_tokens says.
    usual = parse(Endpoint.TOKENIZE, messages=messages, add_special_tokens=True)
    assert usual.messages[-1]["role"] == "user"
    assert not usual.add_special_tokens
    # The chat endpoint knows neither field.
    assert parse(add_generation_prompt=False).add_generation_prompt


def test_the_tokenize_endpoint_continues_only_an_opened_turn() -> None:
    body: dict[str, Any] = {"messages": [USER, ASSISTANT], "continue_final_message": True}
    assert parse(Endpoint.TOKENIZE, add_generation_prompt=True, **body).assistant_prefix == "partial"
    with pytest.raises(Unrenderable) as caught:
        parse(Endpoint.TOKENIZE, add_generation_prompt=False, **body)
    assert caught.value.param == "continue_final_message"
