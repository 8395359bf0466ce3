"""The router's tokens are the engine's, for every kind of chat body it renders."""

from __future__ import annotations

from typing import Any

import pytest
from lane.fleet import Fleet
from lane.waiting import until

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "search",
            "description": "Find “things”.",
            "parameters": {"type": "object", "properties": {"q": {"type": "string"}, "n": {"type": "integer"}}},
        },
    },
    {"type": "function", "function": {"name": "stop"}},
]
ASKED = [{"role": "user", "content": "What grows in Ålesund in May?"}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "Rhubarb, and"}]
CALLED = [
    *ASKED,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "search", "arguments": '{"q": "Ålesund \\"May\\"", "n": 2}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": t} for t in "ab"]},
]  # fmt: skip

BODIES: dict[str, dict[str, Any]] = {
    "plain": {"messages": ASKED},
    "system": {"messages": [{"role": "system", "content": "Be brief."}, *ASKED]},
    "developer": {"messages": [{"role": "developer", "content": "Be brief."}, *ASKED]},
    "named user": {"messages": [{"role": "user", "name": "kim", "content": "hi"}]},
    "multi-turn": {"messages": [*ANSWERED, {"role": "user", "content": "and in June?"}]},
    "unicode": {"messages": [{"role": "user", "content": "naïve e\u0301 你好 мир 🙂\u200d \u00a0x"}]},
    "white space": {"messages": [{"role": "user", "content": "\n\n  a\t\tb \r\n   \n"}]},
    "special tokens in text": {"messages": [{"role": "user", "content": "<|im_end|>\n<|im_start|>system\n<|bos|>"}]},
    "empty": {"messages": [{"role": "user", "content": ""}]},
    "list content": {"messages": [{"role": "user", "content": [{"type": "text", "text": t} for t in ("one", "two")]}]},
    "tools": {"messages": ASKED, "tools": TOOLS},
    "tools, choice none": {"messages": ASKED, "tools": TOOLS, "tool_choice": "none"},
    "tool calls": {"messages": CALLED, "tools": TOOLS},
    "reasoning content": {
        "messages": [
            *ASKED,
            {"role": "assistant", "content": "Kale.", "reasoning_content": "It is cold there."},
            {"role": "user", "content": "Sure?"},
        ]
    },
    "reasoning effort": {"messages": ASKED, "reasoning_effort": "low"},
    "template arguments": {"messages": ASKED, "chat_template_kwargs": {"enable_thinking": False}},
    "template arguments win": {
        "messages": ASKED,
        "reasoning_effort": "low",
        "chat_template_kwargs": {"reasoning_effort": "very high"},
    },
    "assistant last": {"messages": ANSWERED},
    "continued": {"messages": ANSWERED, "continue_final_message": True},
    "continued, thinking off": {
        "messages": ANSWERED,
        "continue_final_message": True,
        "chat_template_kwargs": {"enable_thinking": False},
    },
    "long": {"messages": [{"role": "user", "content": "Nothing new under the sun. " * 60}]},
}  # fmt: skip


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_chat_tokens(fleet: Fleet, body: dict[str, Any]) -> None:
    """What one refuses (a template that knows no such role, say) the other refuses as well."""
    request = {"model": fleet.router.model, **body}
    theirs = fleet.workers[0].tokenize(request)
    ours = fleet.router.call("/v1/tokenize", request)
    assert (ours.status == 200) == (theirs.status == 200), f"the engine: {theirs}, the router: {ours}"
    if theirs.status == 200:
        assert ours.json()["tokens"] == theirs.json()["tokens"]
        assert ours.json()["count"] == theirs.json()["count"]


def test_the_router_has_asked_for_itself(fleet: Fleet) -> None:
    checks = 'sgl_router_worker_token_checks_total{{outcome="{}"}}'.format
    until(lambda: fleet.router.metric(checks("equal")) >= len(fleet.workers), "every worker's tokens compared")
    assert fleet.router.metric(checks("different")) == 0


@pytest.mark.parametrize("special", [True, False])
def test_text_tokens(fleet: Fleet, special: bool) -> None:
    request = {"model": fleet.router.model, "prompt": "Fjords, naïve\n  and deep", "add_special_tokens": special}
    theirs = fleet.workers[0].tokenize(request)
    ours = fleet.router.call("/v1/tokenize", request)
    assert (ours.status, theirs.status) == (200, 200), f"the engine: {theirs}, the router: {ours}"
    assert ours.json()["tokens"] == theirs.json()["tokens"]


def test_detokenized_text(fleet: Fleet) -> None:
    model, worker = fleet.router.model, fleet.workers[0]
    tokens = worker.tokenize({"model": model, "prompt": "Fjords, naïve\n  and deep"}).json()["tokens"]
    request = {"model": model, "tokens": tokens}
    theirs = worker.call("/v1/detokenize", request)
    ours = fleet.router.call("/v1/detokenize", request)
    assert (ours.status, theirs.status) == (200, 200), f"the engine: {theirs}, the router: {ours}"
    assert ours.json()["text"] == theirs.json()["text"]
