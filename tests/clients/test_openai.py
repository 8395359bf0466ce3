"""The official `openai` client against the demo: tools, structured output, log probabilities, n, stop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pydantic
import pytest

from tests.clients.conftest import MODEL
from tests.clients.tools import REPORT, WEATHER

MESSAGES: list[Any] = [{"role": "user", "content": "What will the weather be like in Oslo?"}]


@pytest.fixture
def client(demo: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=demo, api_key="not needed", max_retries=0, timeout=120) as made:
        yield made


def test_a_required_tool_is_called(client: openai.OpenAI) -> None:
    (choice,) = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, tools=[WEATHER], tool_choice="required"
    ).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "get_weather")
    jsonschema.validate(json.loads(call.function.arguments), WEATHER["function"]["parameters"])


def test_a_tool_call_arrives_in_pieces(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        stream=True,
    )
    names, pieces, finish = [], [], None
    for chunk in stream:
        for choice in chunk.choices:
            finish = choice.finish_reason or finish
            for call in choice.delta.tool_calls or ():
                names += [call.function.name] if call.function.name else []
                pieces.append(call.function.arguments or "")
    assert names == ["get_weather"]
    assert finish == "tool_calls"
    assert len(pieces) > 1
    jsonschema.validate(json.loads("".join(pieces)), WEATHER["function"]["parameters"])


def test_an_agent_goes_round_once(client: openai.OpenAI) -> None:
    """A call, its result, and then a plain text: what every agent loop does."""
    first = client.chat.completions.create(model=MODEL, messages=MESSAGES, tools=[WEATHER], tool_choice="required")
    message = first.choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "rain"}
    turn = [*MESSAGES, message.model_dump(exclude_none=True), result]
    second = client.chat.completions.create(model=MODEL, messages=turn, tools=[WEATHER])
    assert second.choices[0].finish_reason == "stop"
    assert second.choices[0].message.content


def test_parse_gives_the_model_that_was_asked_for(client: openai.OpenAI) -> None:
    class Step(pydantic.BaseModel):
        title: str
        minutes: int

    class Plan(pydantic.BaseModel):
        goal: str
        steps: list[Step]
        parent: Plan | None

    parsed = client.chat.completions.parse(model=MODEL, messages=MESSAGES, response_format=Plan).choices[0].message
    assert isinstance(parsed.parsed, Plan)


def test_json_schema_and_json_object(client: openai.OpenAI) -> None:
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "report", "schema": REPORT, "strict": True}}
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, response_format=wanted)
    jsonschema.validate(json.loads(answer.choices[0].message.content or ""), REPORT)
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, response_format={"type": "json_object"})
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


def test_logprobs_have_one_entry_for_each_token(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, logprobs=True, top_logprobs=3, max_tokens=7)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens == 7
    assert "".join(entry.token for entry in content) == answer.choices[0].message.content
    assert all(len(entry.top_logprobs) == 3 and entry.top_logprobs[0].token == entry.token for entry in content)
    streamed = []
    for chunk in client.chat.completions.create(
        model=MODEL, messages=MESSAGES, logprobs=True, top_logprobs=3, max_tokens=7, stream=True
    ):
        for choice in chunk.choices:
            streamed += choice.logprobs.content if choice.logprobs else []
    assert streamed == content


def test_n_gives_that_many_choices(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, n=3, max_tokens=12)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 3
    assert answer.usage.completion_tokens == 36
    pieces: dict[int, str] = {0: "", 1: "", 2: ""}
    for chunk in client.chat.completions.create(model=MODEL, messages=MESSAGES, n=3, max_tokens=12, stream=True):
        for choice in chunk.choices:
            pieces[choice.index] += choice.delta.content or ""
    assert list(pieces.values()) == [choice.message.content for choice in answer.choices]


def test_stop_ends_the_text_before_it(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=30).choices[0].message.content
    stop = whole.split()[3]
    request: Any = {"model": MODEL, "messages": MESSAGES, "max_tokens": 30, "stop": ["never said", stop]}
    (choice,) = client.chat.completions.create(**request).choices
    assert choice.message.content == whole[: whole.index(stop)]
    assert choice.finish_reason == "stop"
    assert choice.model_extra["matched_stop"] == stop
    chunks = client.chat.completions.create(**request, stream=True)
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == choice.message.content


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_choice": "required"},
        {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "another"}}},
        {"response_format": {"type": "yaml"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "thing"}}}},
        {"top_logprobs": 50, "logprobs": True},
        {"stop": 5},
    ],
    ids=["no-tools", "other-tool", "unknown-format", "unknown-type", "too-many-logprobs", "stop-type"],
)
def test_what_cannot_be_done_is_the_clients_own_exception(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=MODEL, messages=MESSAGES, **fields)
