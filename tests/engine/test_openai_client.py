"""The official client works against the router as it works against the engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from lane.answers import DECISION_HEADER, ERROR_HEADER, WORKER_HEADER, cached_tokens, parse_decision
from lane.fleet import Fleet

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather at a place.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}},
            "required": ["place"],
        },
    },
}


@pytest.fixture
def client(fleet: Fleet) -> Iterator[openai.OpenAI]:
    key = fleet.workers[0].api_key or "not needed"
    http = openai.DefaultHttpxClient(trust_env=False)
    with openai.OpenAI(
        base_url=f"{fleet.router.url}/v1", api_key=key, max_retries=0, timeout=60, http_client=http
    ) as made:
        yield made


def test_buffered(fleet: Fleet, client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=fleet.router.model,
        messages=fleet.prompts.user("buffered", 5 * fleet.page),
        max_tokens=8,
        extra_body={"ignore_eos": True},
    )
    answer = raw.parse()
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content
    assert answer.usage is not None and answer.usage.completion_tokens == 8
    assert fleet.by_id(raw.headers[WORKER_HEADER]) in fleet.workers
    assert parse_decision(raw.headers[DECISION_HEADER]).matched == 0


def test_streamed_with_usage(fleet: Fleet, client: openai.OpenAI) -> None:
    """Twice: the tokens arrive one by one, and the second time the usage tells of the hit that was predicted."""
    request: dict[str, Any] = {
        "model": fleet.router.model,
        "messages": fleet.prompts.user("streamed", 8 * fleet.page),
        "max_tokens": 24,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "extra_body": {"ignore_eos": True},
    }
    texts = []
    for turn in range(2):
        raw = client.chat.completions.with_raw_response.create(**request)
        chunks = list(raw.parse())
        pieces = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
        assert len(pieces) >= 5
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
        usage = chunks[-1].usage
        assert usage is not None and usage.completion_tokens == 24
        decision = parse_decision(raw.headers[DECISION_HEADER])
        assert decision.hit is (turn == 1), decision.raw
        assert decision.tokens(fleet.page) == cached_tokens(usage.model_dump()), decision.raw
        texts.append("".join(pieces))
        fleet.settle()
    assert texts[0] == texts[1]


def test_list_content_is_predicted(fleet: Fleet, client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": fleet.prompts.text(("part", n), 4 * fleet.page)} for n in range(3)]
    _twice(fleet, client, messages=[{"role": "user", "content": parts}])


def test_tools_are_predicted(fleet: Fleet, client: openai.OpenAI) -> None:
    called = {"name": "get_weather", "arguments": '{"place": "Oslo"}'}
    _twice(
        fleet,
        client,
        messages=[
            {"role": "system", "content": fleet.prompts.text("tools", 6 * fleet.page)},
            {"role": "user", "content": "Weather?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c1", "type": "function", "function": called}],
            },
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "rain"}]},
        ],
        tools=[TOOL],
    )


def test_errors_are_the_clients_own_exceptions(fleet: Fleet, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="no-such-model", messages=[{"role": "user", "content": "hi"}])
    assert missing.value.code == "model_not_found"
    assert missing.value.response.headers[ERROR_HEADER] == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:  # by the engine: passed through as it said it
        client.chat.completions.create(
            model=fleet.router.model, messages=[{"role": "user", "content": "hi"}], max_tokens=-5
        )
    assert refused.value.status_code == 400


def test_models_are_listed(fleet: Fleet, client: openai.OpenAI) -> None:
    assert fleet.router.model in [model.id for model in client.models.list()]


def _twice(fleet: Fleet, client: openai.OpenAI, **request: Any) -> None:
    """Cold, then a hit of every full page: only possible where the router's tokens are the engine's."""
    for turn in range(2):
        raw = client.chat.completions.with_raw_response.create(
            model=fleet.router.model, max_tokens=4, temperature=0, extra_body={"ignore_eos": True}, **request
        )
        usage = raw.parse().usage
        assert usage is not None
        cached = cached_tokens(usage.model_dump())
        decision = parse_decision(raw.headers[DECISION_HEADER])
        assert decision.tokens(fleet.page) == cached, decision.raw
        full = (usage.prompt_tokens - 1) // fleet.page * fleet.page
        assert cached == (full if turn else 0), decision.raw
        fleet.settle()
