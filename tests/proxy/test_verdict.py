from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_router.upstream.verdict import Said, judge, judge_start, usage_of


def choice(**fields: object) -> dict[str, object]:
    return {"index": 0, "logprobs": None, "finish_reason": None, **fields}


def said(*choices: dict[str, object], **extra: object) -> Said:
    return judge(json.dumps({"id": "x", "choices": list(choices), **extra}).encode()).said


@pytest.mark.parametrize(
    ("code", "status"),
    [(500, 500), (503, 503), (429, 429), (400, 400), ("503", 503), (499, 499), (200, 500), (0, 500), (True, 500)],
)
def test_an_errors_status_is_its_code(code: object, status: int) -> None:
    event = {"error": {"object": "error", "message": "m", "type": "t", "param": None, "code": code}}
    assert judge(json.dumps(event).encode())[:2] == (Said.ERROR, status)
    flat = {"object": "error", "message": "m", "type": "t", "param": None, "code": code}
    assert judge(json.dumps(flat).encode())[:2] == (Said.ERROR, status)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"message": "out of memory"}, 500),
        ({"code": None}, 500),
        ({"code": "upstream_timeout", "type": "server_error"}, 500),
        ({"code": "queue_full", "type": "rate_limit_error"}, 429),
        ({"code": "no_healthy_workers", "type": "service_unavailable_error"}, 503),
        ({"type": "BadRequestError"}, 400),
        ({"type": ["odd"]}, 500),
        ("Unauthorized", 500),
        ([], 500),
        (False, 500),
    ],
)
def test_an_error_without_a_status_goes_by_its_type(error: object, status: int) -> None:
    assert judge(json.dumps({"error": error}).encode())[:2] == (Said.ERROR, status)


@pytest.mark.parametrize(
    "text", [b"", b"{}", b" {} ", b"null", b"[]", b'""', b"<html>", b"ok", b'{"choices": [', b"\xff"]
)
def test_what_says_nothing(text: bytes) -> None:
    assert judge(text).said is Said.NOTHING


def test_tokens_are_good_and_a_role_alone_opens() -> None:
    assert said(choice(delta={"role": "assistant", "content": ""})) is Said.OPENING
    assert said(choice(delta={"role": "assistant", "content": "", "reasoning_content": None, "tool_calls": []})) is (
        Said.OPENING
    )
    assert said(choice(delta={"content": "x"})) is Said.GOOD
    assert said(choice(delta={"role": "assistant", "reasoning_content": "x"})) is Said.GOOD
    assert said(choice(delta={"tool_calls": [{"index": 0}]})) is Said.GOOD
    assert said(choice(delta={}, finish_reason="stop")) is Said.GOOD
    assert said(choice(message={"content": ""})) is Said.GOOD
    assert said(choice(text="")) is Said.GOOD
    assert said(usage={"prompt_tokens": 1}) is Said.NOTHING
    assert judge(b'{"id": "x"}').said is Said.GOOD
    assert said(choice(delta={"content": "x"}), error=None) is Said.GOOD


def test_an_abort_is_one_where_no_other_choice_goes_on() -> None:
    assert said(choice(delta={}, finish_reason="abort")) is Said.ABORTED
    assert said(choice(message={"content": "some"}, finish_reason="abort")) is Said.ABORTED
    assert said(choice(delta={}, finish_reason="abort"), choice(delta={"content": "x"})) is Said.GOOD


@pytest.mark.parametrize("content", ['"\\ud83d"', '"\x7f"', "NaN"])
def test_what_clients_read_and_strict_parsers_refuse_is_good(content: str) -> None:
    event = b'{"choices": [{"delta": {"content": %b}, "finish_reason": null}], "usage": {"a": 1}}' % content.encode()
    assert judge(event)[:3] == (Said.GOOD, 0, {"a": 1})
    assert judge(event.replace(b'"finish_reason": null', b'"finish_reason": "abort"')).said is Said.ABORTED
    assert judge(b'{"error": {"code": 503, "message": ' + content.encode() + b"}}")[:2] == (Said.ERROR, 503)
    assert judge(b'{"object": "error", "code": 503, "message": ' + content.encode() + b"}")[:2] == (Said.ERROR, 503)


def test_a_byte_order_mark_is_no_part_of_a_body() -> None:
    body = json.dumps({"choices": [choice(message={"content": "x"})]}).encode()
    assert judge(b"\xef\xbb\xbf" + body).said is Said.GOOD


def test_what_is_too_long_goes_by_its_beginning() -> None:
    assert judge_start(b' { "error" : {"message": "m", "code": 503}, ' + b"x" * 99)[:2] == (Said.ERROR, 503)
    assert judge_start(b'{"error":"')[:2] == (Said.ERROR, 500)
    assert judge_start(b'{"error": null, "choices": [').said is Said.GOOD
    assert judge_start(b'{"id": "x", "choices": [').said is Said.GOOD
    assert judge_start(b"  ").said is Said.NOTHING


def test_usage_is_that_of_the_top_level() -> None:
    assert usage_of(b'{"choices": [{"usage": {"a": 1}}], "usage": {"b": 2}}') == {"b": 2}
    assert usage_of(b'{"metadata": {"usage": {"a": 1}}}') is None
    assert usage_of(b'{"usage": null}') is None
    assert usage_of(b'{"usage": [1]}') is None


@given(st.binary() | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(
        ["error", "code", "type", "object", "choices", "delta", "finish_reason", "usage", "message"]), inner),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_nothing_makes_it_raise(text: bytes) -> None:
    verdict = judge(text)
    assert 400 <= verdict.status <= 599 if verdict.said is Said.ERROR else not verdict.status
    judge_start(text)
    usage_of(text)


def test_deep_nesting_is_no_json() -> None:
    for text in (b"[" * 100_000, b'{"a":' * 40_000, b'{"error":' + b"[" * 100_000):
        assert judge(text).said in (Said.NOTHING, Said.ERROR)
