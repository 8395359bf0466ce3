"""`default_chat_template_kwargs`: what the option can hold, and nothing with which no chat could be rendered."""

from __future__ import annotations

import datetime
import math
import pathlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from sgl_router.config import Config, load_config, parse_config
from sgl_router.config.errors import Rejected
from sgl_router.config.template_kwargs import _SET_BY_THE_ENGINE, parse_template_kwargs
from sgl_router.tokenization.chat_request import TemplateTraits, parse_chat
from sgl_router.tokenization.errors import Unrenderable
from sgl_router.tokenization.messages import ContentFormat

PATH = "models[0].default_chat_template_kwargs"
MAPPING = "a mapping of chat template variables, like {enable_thinking: false}"
GIVEN = {"enable_thinking": False, "date": "2026-01-01", "n": 1, "x": {"y": [1.5, None, "é"]}, "none": None}


def model(given: Any) -> dict[str, Any]:
    return {"models": [{"id": "tiny", "tokenizer_path": "org/tiny", "default_chat_template_kwargs": given}]}


def test_it_arrives_as_given_and_so_in_other_processes(minimal: Callable[..., dict[str, Any]]) -> None:
    config = parse_config(minimal(model(GIVEN))).config
    assert config.models[0].default_chat_template_kwargs == GIVEN
    # How the supervisor hands the configuration to its processes.
    assert msgspec.json.decode(msgspec.json.encode(config), type=Config) == config
    assert parse_config(minimal()).config.models[0].default_chat_template_kwargs is None
    assert parse_config(minimal(model(None))).config.models[0].default_chat_template_kwargs is None
    assert parse_config(minimal(model({}))).config.models[0].default_chat_template_kwargs == {}


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (
            '{"enable_thinking": false}',
            f"{PATH}: expected {MAPPING}, got '{{\"enable_thinking\": false}}' "
            "(the object itself, not a string that holds it: no quotes around it)",
        ),
        (["enable_thinking"], f"{PATH}: expected {MAPPING}, got a list"),
        (True, f"{PATH}: expected {MAPPING}, got true"),
        ({3: True}, f"{PATH}: expected {MAPPING}, got a mapping (the name 3 is no string: quote it)"),
        (
            {"tools": []},
            f"{PATH}.tools: expected the name of a template variable, got an empty list "
            "(tools is set by the engine itself)",
        ),
        (
            {"chat_template": "x"},
            f"{PATH}.chat_template: expected the name of a template variable, got 'x' "
            "(a template goes into chat_template, beside)",
        ),
        (
            {"date": datetime.date(2026, 1, 1)},
            f"{PATH}.date: expected what JSON can hold, got a date ('2026-01-01') (quote it to make it a string)",
        ),
    ],
)
def test_what_is_refused(minimal: Any, problems: Any, given: Any, problem: str) -> None:
    assert problems(minimal(model(given))) == [problem]


@pytest.mark.parametrize(
    "item", [math.inf, math.nan, 1 << 64, {1: 2}, "\ud800", {"\ud800": 1}, [datetime.date(2026, 1, 1)], (1,)]
)
def test_what_json_cannot_hold_is_refused_however_deep(item: object) -> None:
    for given in (item, [item], {"a": [item]}):
        with pytest.raises(Rejected, match="JSON"):
            parse_template_kwargs({"x": given})


def test_nesting_without_end_is_refused() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(Rejected, match="JSON"):
        parse_template_kwargs({"x": deep})


@pytest.mark.parametrize("name", sorted(_SET_BY_THE_ENGINE))
def test_names_are_refused_with_which_no_chat_can_be_rendered(name: str) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}]}
    with pytest.raises(Unrenderable):
        parse_chat(body, TemplateTraits(ContentFormat.STRING, default_kwargs={name: None}))


@pytest.mark.parametrize("suffix", ["yaml", "toml"])
def test_from_a_file(tmp_path: pathlib.Path, suffix: str) -> None:
    text = {
        "yaml": "models: [{id: m, tokenizer_path: a/b, default_chat_template_kwargs: {enable_thinking: false, n: 2}}]\n"
        "discovery: {static_urls: {urls: [http://a]}}\n",
        "toml": '[[models]]\nid = "m"\ntokenizer_path = "a/b"\n[models.default_chat_template_kwargs]\n'
        'enable_thinking = false\nn = 2\n[discovery.static_urls]\nurls = ["http://a"]\n',
    }[suffix]
    path = tmp_path / f"config.{suffix}"
    path.write_text(text)
    [one] = load_config(path).config.models
    assert one.default_chat_template_kwargs == {"enable_thinking": False, "n": 2}
