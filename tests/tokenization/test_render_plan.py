from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sgl_router.tokenization import render_plan
from sgl_router.tokenization.render_plan import Cut, RenderPlans
from sgl_router.tokenization.template import ChatTemplate

STYLES = {path.stem: path.read_text() for path in (Path(__file__).parent / "styles").glob("*.jinja")}
REST: dict[str, Any] = {"tools": None, "documents": None, "add_generation_prompt": True}
CUT = "<|im_end|>"


def plans(source: str, cut: str | None = CUT) -> RenderPlans:
    return RenderPlans(ChatTemplate(source, {"bos_token": "<|endoftext|>"}), cut)


@pytest.mark.parametrize("style", sorted(STYLES))
def test_every_style_is_followed(style: str) -> None:
    made = plans(STYLES[style])
    cut = made.render(None, ["user", "assistant", "user"], ["one", "two", "three"], REST)
    assert cut is not None
    assert len(cut.head) >= 1
    assert "two" in "".join(cut.head)
    assert "three" in cut.tail


def test_a_text_is_cut_before_the_first_cut_between_two_contents() -> None:
    made = plans("{% for m in messages %}[{{ m.content }}]<c>-<c>{% endfor %}", "<c>")
    cut = made.render(None, ["user"] * 3, ["1", "2", "3"], REST)
    assert cut == Cut(["[1]", "<c>-<c>[2]"], "<c>-<c>[3]<c>-<c>")
    assert made.render(None, ["user"] * 2, ["<c>", ""], REST) == Cut([], "[<c>]<c>-<c>[]<c>-<c>")


def test_without_a_cut_a_text_is_one_piece() -> None:
    made = plans(STYLES["chatml"], None)
    cut = made.render(None, ["user", "user"], ["1", "2"], REST)
    assert cut is not None
    assert cut.head == []


def test_the_key_stands_for_everything_else_a_template_is_given() -> None:
    made = plans("{{ mood }}{% for m in messages %}{{ m.content }}{% endfor %}")
    for mood in ("good", "bad", "good"):
        cut = made.render(mood.encode(), ["user"], ["x"], {**REST, "mood": mood})
        assert cut == Cut([], mood + "x")


def test_what_is_kept_is_bounded_and_the_least_recently_used_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render_plan, "_MAX_BYTES", 20_000)
    made = plans(STYLES["chatml"])
    for i in range(100):
        made.render(b"hot", ["user"], ["x"], REST)
        made.render(b"%d" % i, ["user"] * (1 + i % 4), ["x"] * (1 + i % 4), REST)
        assert made.bytes <= 20_000
    assert made.bytes == sum(entry.bytes for entry in made._entries.values())
    assert (b"hot", "user") in made._entries
    assert (b"0", "user") not in made._entries


def test_a_failing_template_has_no_plan() -> None:
    made = plans(STYLES["mistral"])
    assert made.render(None, ["assistant", "user"], ["a", "b"], REST) is None


def test_long_conversations_are_left_to_the_template() -> None:
    assert plans(STYLES["chatml"]).render(None, ["user"] * 2000, ["x"] * 2000, REST) is None


def test_a_client_cannot_name_what_stands_for_opaque_uses() -> None:
    made = plans("{{ messages[0].content | upper }}")
    assert made.render(b"k", ["user"], ["x"], {**REST, "__opaque__": "x", "raise_exception": 1}) is None
