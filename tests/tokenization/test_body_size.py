from __future__ import annotations

from typing import Any

import pytest

from sgl_router.tokenization.body_size import exceeds


def message(text: str = "x") -> dict[str, Any]:
    return {"role": "user", "content": text}


def test_small_bodies_fit() -> None:
    assert not exceeds([message()] * 10, nodes=30, chars=100)
    assert not exceeds({}, nodes=0, chars=0)


@pytest.mark.parametrize(
    "body",
    [
        [message()] * 11,
        [message("x" * 101)],
        [{"role": "user", "content": [{"type": "text", "text": "x" * 101}]}],
        [{"a": {"b": [1] * 40}}],
        {"k": ["x" * 51] * 2},
        "x" * 101,
        [1] * 31,
    ],
)
def test_large_ones_do_not(body: Any) -> None:
    assert exceeds(body, nodes=30, chars=100)


def test_the_walk_ends_at_the_limit() -> None:
    class Guard(list[Any]):
        def __iter__(self) -> Any:
            raise AssertionError("walked past the limit")

    assert exceeds(Guard([0] * 31), nodes=30, chars=100)


def test_depth_does_not_recurse() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    assert exceeds(nested, nodes=1000, chars=0)
    while nested:
        nested = nested.pop()
