from __future__ import annotations

from typing import Any

import pytest

from sgl_router.tokenization.body_size import exceeds


def message(text: str = "x") -> dict[str, Any]:
    return {"role": "user", "content": text}


def test_small_bodies_fit() -> None:
    assert not exceeds({"messages": [message()] * 10, "model": "m" * 10_000}, nodes=30, chars=100)
    assert not exceeds({}, nodes=0, chars=0)


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [message()] * 11},
        {"messages": [message("x" * 101)]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 101}]}]},
        {"messages": [], "tools": [{"a": {"b": [1] * 40}}]},
        {"messages": [], "chat_template_kwargs": {"k": "x" * 101}},
        {"messages": [], "input_ids": [1] * 31},
    ],
)
def test_large_ones_do_not(body: dict[str, Any]) -> None:
    assert exceeds(body, nodes=30, chars=100)


def test_the_walk_ends_at_the_limit() -> None:
    class Guard(list[Any]):
        def __iter__(self) -> Any:
            raise AssertionError("walked past the limit")

    assert exceeds({"messages": Guard([0] * 31)}, nodes=30, chars=100)


def test_depth_does_not_recurse() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    assert exceeds({"messages": nested}, nodes=1000, chars=0)
    while nested:
        nested = nested.pop()
