"""What a chat template may ask of a message's content without more than the answer showing in its rendering."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

__all__ = ["Question", "asked"]


class Question(NamedTuple):
    """`kind` is "startswith", "endswith", "in" or "eq", asked of a content about a constant text."""

    kind: str
    text: str


def asked(questions: Iterable[Question]) -> Callable[[list[str]], bool] | None:
    """Whether the answer to any of the questions is yes for any of the contents; None where nothing is asked."""
    texts: dict[str, list[str]] = {}
    for kind, text in questions:
        texts.setdefault(kind, []).append(text)
    if not texts:
        return None
    starts, ends = tuple(texts.get("startswith", ())), tuple(texts.get("endswith", ()))
    parts, wholes = texts.get("in", ()), frozenset(texts.get("eq", ()))

    def any_yes(contents: list[str]) -> bool:
        return (
            (starts != () and any(content.startswith(starts) for content in contents))
            or (ends != () and any(content.endswith(ends) for content in contents))
            or any(part in content for part in parts for content in contents)
            or not wholes.isdisjoint(contents)
        )

    return any_yes
