"""LangChain's `ChatOpenAI` with the router as its endpoint."""

from __future__ import annotations

from typing import Any

import pydantic

from tests.clients.conftest import MODEL


class Report(pydantic.BaseModel):
    """A report."""

    summary: str
    score: float = pydantic.Field(ge=0, le=1)
    tags: list[str] = pydantic.Field(min_length=1)


def get_weather(place: str, days: int) -> str:
    """The weather at a place."""
    return f"{days} days of rain in {place or 'that place'}"


def chat(demo: str, **settings: Any) -> Any:
    from langchain_openai import ChatOpenAI  # seconds: only where it is used

    return ChatOpenAI(model=MODEL, base_url=demo, api_key="not needed", max_retries=0, timeout=120, **settings)


def test_invoke_and_stream_are_one_text(demo: str) -> None:
    model = chat(demo, max_tokens=16)
    whole = model.invoke("Tell me about prefix caches.")
    assert whole.usage_metadata["output_tokens"] == 16
    assert "".join(chunk.content for chunk in model.stream("Tell me about prefix caches.")) == whole.content


def test_an_agent_goes_round_once(demo: str) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_core.tools import tool

    model, weather = chat(demo), tool(get_weather)
    question = HumanMessage("What will the weather be like in Oslo?")
    called = model.bind_tools([weather], tool_choice="required").invoke([question])
    (call,) = called.tool_calls
    assert call["name"] == "get_weather"
    result = ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])
    assert model.bind_tools([weather]).invoke([question, called, result]).content


def test_structured_output_is_an_instance(demo: str) -> None:
    for method in ("json_schema", "function_calling"):
        report = chat(demo).with_structured_output(Report, method=method).invoke("Report.")
        assert isinstance(report, Report), method
