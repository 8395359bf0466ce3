"""Rendering without the template: where the contents of a conversation of a known shape land between fixed texts."""

from __future__ import annotations

import re
import secrets
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, NamedTuple

import structlog

from sgl_router.tokenization.content_flow import FlowError
from sgl_router.tokenization.content_questions import Question, asked
from sgl_router.tokenization.template import ChatTemplate, FollowedTemplate, strftime_now

__all__ = ["Cut", "Plan", "RenderPlans"]

log = structlog.get_logger(__name__)

# Longer conversations are rendered by the template; a plan's size is bounded by its shape.
_MAX_MESSAGES = 1024
_MAX_BYTES = 16 << 20
_PLAN_BYTES = 1_000
_SLOT_BYTES = 250
_STRIPS = {(False, False): "", (True, False): "lstrip", (False, True): "rstrip", (True, True): "strip"}
_FIRST_INDEX = 0xF0000
_BORDERS = "\x1c\x1d\x1e\x1f\u2000\u2001\u2002\u2003"


class Cut(NamedTuple):
    """A text in parts, each but the first beginning with the token it was cut at; `tail` has what is new last."""

    head: list[str]
    tail: str


class Plan:
    """A shape's rendering: three parts for each place a content lands, the text before, a gap, and the text after."""

    __slots__ = ("_clock", "_order", "_parts", "_spans", "_strips", "_tail", "bytes")

    def __init__(
        self,
        texts: list[str],
        places: list[tuple[int, str]],
        messages: int,
        cut: str | None,
        clock: list[tuple[str, str]],
    ) -> None:
        parts = [texts[0], "", ""]
        starts = [0]
        for k, text in enumerate(texts[1:]):
            at = text.find(cut) if cut is not None and k + 1 < len(places) else -1
            if at < 0:
                parts[-1] += text
            else:
                parts[-1] += text[:at]
                starts.append(len(parts))
                text = text[at:]
            if k + 1 < len(places):
                parts.extend((text if at >= 0 else "", "", ""))
        self._parts = parts
        self._spans = [(start, starts[i + 1]) for i, start in enumerate(starts[:-1])]
        self._tail = starts[-1]
        order = [index for index, _ in places]
        self._order = None if order == list(range(messages)) else order
        strips = [strip for _, strip in places]
        self._strips = strips if any(strips) else None
        # What the template asked the clock, and was told.
        self._clock = clock
        self.bytes = _PLAN_BYTES + sum(map(len, texts)) + _SLOT_BYTES * (len(places) + messages)

    def is_out_of_date(self) -> bool:
        return any(strftime_now(form) != text for form, text in self._clock)

    def fill(self, contents: list[str]) -> Cut:
        """The rendering of a conversation with these contents."""
        values = contents if self._order is None else [contents[i] for i in self._order]
        if self._strips is not None:
            values = [getattr(value, how)() if how else value for value, how in zip(values, self._strips, strict=True)]
        parts = self._parts.copy()
        parts[1::3] = values
        return Cut(["".join(parts[a:b]) for a, b in self._spans], "".join(parts[self._tail :]))


class _Entry(NamedTuple):
    # None where this shape's rendering depends on its contents in more ways than showing them.
    plan: Plan | None
    bytes: int


class RenderPlans:
    """Plans by shape, least recently used last. For one thread."""

    def __init__(self, template: ChatTemplate, cut: str | None) -> None:
        self._cut = cut
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self.bytes = 0
        self._clock: list[tuple[str, str]] = []
        # From the private use areas: no template asks whether a content has these.
        self._token = "".join(chr(0xE000 + secrets.randbelow(0x1900)) for _ in range(12))
        # Whether a placeholder was stripped shows in the white space around it, which nobody else can write.
        self._left, self._right = ("".join(secrets.choice(_BORDERS) for _ in range(24)) for _ in range(2))
        self._place = re.compile(f"{self._token}(.)")
        self._placeholders: list[str] = []
        self._followed: FollowedTemplate | None = None
        questions: tuple[Question, ...] = ()
        try:
            self._followed = template.followed(self._strftime_now)
            questions = self._followed.questions
        except FlowError as error:
            log.info("chat template is rendered in full each time", why=str(error))
        self._is_unusual = asked(questions)

    def render(self, key: bytes | None, roles: list[str], contents: list[str], variables: dict[str, Any]) -> Cut | None:
        """The rendering of messages that have a role and a content and nothing else; None if there is no plan for it.

        `variables` are whatever else the template is given, and `key` stands for them.
        """
        if self._followed is None or len(contents) > _MAX_MESSAGES:
            return None
        if self._is_unusual is not None and self._is_unusual(contents):
            return None
        if "" in contents:
            shape = (key, *[role if content else f"-{role}" for role, content in zip(roles, contents, strict=True)])
        else:
            shape = (key, *roles)
        entry = self._entries.get(shape)
        if entry is not None and entry.plan is not None and entry.plan.is_out_of_date():
            self._forget(shape)
            entry = None
        if entry is None:
            entry = self._remember(shape, self._make(self._followed, roles, contents, variables), len(key or b""))
        else:
            self._entries.move_to_end(shape)
        return None if entry.plan is None else entry.plan.fill(contents)

    def _strftime_now(self, form: str) -> str:
        text = strftime_now(form)
        self._clock.append((form, text))
        return text

    def _make(
        self, followed: FollowedTemplate, roles: list[str], contents: list[str], variables: dict[str, Any]
    ) -> Plan | None:
        self._clock = []
        for index in range(len(self._placeholders), len(contents)):
            self._placeholders.append(f"{self._left}{self._token}{chr(_FIRST_INDEX + index)}{self._right}")
        shown = [place if content else "" for place, content in zip(self._placeholders, contents)]  # noqa: B905
        if self._is_unusual is not None and self._is_unusual(shown):
            return None
        try:
            text = followed.render(
                [{"role": role, "content": content} for role, content in zip(roles, shown, strict=True)], variables
            )
        except Exception:
            # Its rendering depends on contents, or fails whatever they are: the template itself has to say.
            return None
        return self._plan(self._place.split(text), len(contents))

    def _plan(self, split: list[str], messages: int) -> Plan | None:
        """The plan of texts and, between them, the indices of the contents placed there."""
        if len(split) == 1:
            return None
        texts, left, right = split[::2], self._left, self._right
        places = []
        for k, index in enumerate(split[1::2]):
            before, after = texts[k].removesuffix(left), texts[k + 1].removeprefix(right)
            strips = _STRIPS[len(before) == len(texts[k]), len(after) == len(texts[k + 1])]
            texts[k], texts[k + 1] = before, after
            places.append((ord(index) - _FIRST_INDEX, strips))
        whole = "".join(texts)
        if self._token in whole or left in whole or right in whole:
            return None
        return Plan(texts, places, messages, self._cut, self._clock)

    def _remember(self, shape: Hashable, plan: Plan | None, key_bytes: int) -> _Entry:
        entry = _Entry(plan, key_bytes + (_PLAN_BYTES if plan is None else plan.bytes))
        self._entries[shape] = entry
        self.bytes += entry.bytes
        while self.bytes > _MAX_BYTES:
            self._forget(next(iter(self._entries)))
        return entry

    def _forget(self, shape: Hashable) -> None:
        self.bytes -= self._entries.pop(shape).bytes
