from __future__ import annotations

from sgl_router.tokenization.content_questions import Question, asked


def test_questions_are_answered_for_every_content() -> None:
    ask = asked([Question("startswith", "a"), Question("endswith", "b"), Question("in", "-"), Question("eq", "!")])
    assert ask is not None
    assert not ask(["", "x", "ba"])
    assert [ask(["x", text]) for text in ("ax", "xb", "x-x", "!")] == [True] * 4
    assert asked([]) is None
