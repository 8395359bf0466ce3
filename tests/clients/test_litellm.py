"""LiteLLM's SDK with the router as an OpenAI-compatible backend."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from tests.clients.conftest import MODEL
from tests.clients.tools import REPORT, WEATHER

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydantic", "ignore::DeprecationWarning:litellm")

MESSAGES = [{"role": "user", "content": "What will the weather be like in Oslo?"}]


def ask(demo: str, **fields: Any) -> Any:
    import litellm  # seconds: only where it is used

    return litellm.completion(
        model=f"openai/{MODEL}",
        api_base=demo,
        api_key="not needed",
        messages=MESSAGES,
        timeout=120,
        num_retries=0,
        **fields,
    )


def test_buffered_and_streamed_are_one_text(demo: str) -> None:
    whole = ask(demo, max_tokens=16)
    assert whole.usage.completion_tokens == 16
    chunks = list(ask(demo, max_tokens=16, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == (
        whole.choices[0].message.content
    )
    assert any(getattr(chunk, "usage", None) and chunk.usage.completion_tokens == 16 for chunk in chunks)


def test_tools_and_structured_output(demo: str) -> None:
    called = ask(demo, tools=[WEATHER], tool_choice="required").choices[0]
    assert called.finish_reason == "tool_calls"
    arguments = json.loads(called.message.tool_calls[0].function.arguments)
    jsonschema.validate(arguments, WEATHER["function"]["parameters"])
    wanted = {"type": "json_schema", "json_schema": {"name": "report", "schema": REPORT}}
    jsonschema.validate(json.loads(ask(demo, response_format=wanted).choices[0].message.content), REPORT)


def test_an_unknown_model_is_its_own_exception(demo: str) -> None:
    import litellm

    with pytest.raises(litellm.NotFoundError, match="no-such-model"):
        litellm.completion(
            model="openai/no-such-model", api_base=demo, api_key="x", messages=MESSAGES, timeout=120, num_retries=0
        )
