from __future__ import annotations

from sgl_router.tokenization.errors import TokenizeBadRequest, Unrenderable, UnrenderableReason, invalid


def test_reasons_are_their_own_labels() -> None:
    assert [reason.value for reason in UnrenderableReason] == [
        "media",
        "no_template",
        "template_error",
        "invalid_messages",
        "code_encoder",
        "too_long",
    ]


def test_errors_carry_what_an_answer_needs() -> None:
    error = invalid("messages[0].role", "must be a string")
    assert isinstance(error, Unrenderable)
    assert error.reason is UnrenderableReason.INVALID_MESSAGES
    assert str(error) == error.message == "messages[0].role: must be a string"
    assert error.param == "messages[0].role"
    bad = TokenizeBadRequest("wrong", "prompt")
    assert (bad.message, bad.param, str(bad)) == ("wrong", "prompt", "wrong")
