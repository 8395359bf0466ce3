"""Selectors: equalities in either spelling, and a reason for everything else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_router.config.errors import Rejected
from sgl_router.config.labels import is_label_key, is_label_value, parse_annotation, parse_namespace, parse_selector


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        ({"app": "sglang"}, {"app": "sglang"}),
        ({"app.kubernetes.io/name": "sglang", "empty": ""}, {"app.kubernetes.io/name": "sglang", "empty": ""}),
        ("app=sglang", {"app": "sglang"}),
        (" app = sglang , tier==gpu ", {"app": "sglang", "tier": "gpu"}),
        ("app=sglang,app=sglang", {"app": "sglang"}),
        ("app=", {"app": ""}),
    ],
)
def test_equalities(given: object, labels: dict[str, str]) -> None:
    assert parse_selector(given) == labels


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("tier in (gpu, cpu)", "set-based terms, in (...) and notin (...), are not supported"),
        ("tier notin(gpu)", "set-based terms, in (...) and notin (...), are not supported"),
        ("app!=sglang", "'app!=sglang' is an inequality; only equalities are supported"),
        ("!app", "'!app' asks for the absence of a label; only equalities are supported"),
        ("app", "'app' has no value; only equalities are supported"),
        ("", "an empty selector would match every pod"),
        ({}, "an empty selector would match every pod"),
        ("app=a,", "there is nothing between two commas, or after the last"),
        ("app=a,app=b", "app cannot be 'a' and 'b' at once"),
        ("app=a tier=b", "'a tier=b' is not a label value: separate the terms by commas"),
        ("app=-a", "'-a' is not a label value: at most 63 of A-Z a-z 0-9 - _ ."),
        ("-app=a", "'-app' is not a label name"),
        ({"app": "in (a, b)"}, "only equalities are supported"),
        ({"app": 1}, "quote it"),
        ({"canary": True}, "quote it"),
        ({"app": None}, ""),
        ({"app": "-"}, ""),
        ({1: "a"}, "this is the name, not the value"),
        ({"matchLabels": {"app": "a"}}, "write the labels directly, without matchLabels"),
        ({"matchExpressions": []}, "only equalities are supported"),
        (["app=a"], ""),
        (None, ""),
    ],
)
def test_refused_with_the_reason(given: object, hint: str) -> None:
    with pytest.raises(Rejected) as caught:
        parse_selector(given)
    assert caught.value.hint == hint
    assert caught.value.expected


@pytest.mark.parametrize("key", ["a", "A_b.c-d", "x" * 63, "example.com/a"])
def test_label_keys(key: str) -> None:
    assert is_label_key(key)


@pytest.mark.parametrize("key", ["", "x" * 64, "/a", "a/", "Example.com/a", "a/b/c", "-a", "a b", "a\n"])
def test_not_label_keys(key: str) -> None:
    assert not is_label_key(key)


def test_label_values_may_be_empty_but_not_long() -> None:
    assert is_label_value("")
    assert not is_label_value("x" * 64)


def test_namespaces_and_annotations() -> None:
    assert parse_namespace("team-a") == "team-a"
    assert parse_annotation("sglang.ai/bootstrap-port") == "sglang.ai/bootstrap-port"
    with pytest.raises(Rejected, match="Kubernetes namespace"):
        parse_namespace("Team_A")
    with pytest.raises(Rejected, match="annotation"):
        parse_annotation("sglang.ai/")


@given(st.text() | st.text(alphabet="ab=!,(in) ", max_size=20) | st.dictionaries(st.text(), st.text()))
def test_a_parsed_selector_is_valid(given: object) -> None:
    try:
        labels = parse_selector(given)
    except Rejected:
        return
    assert labels
    assert all(is_label_key(key) and is_label_value(value) for key, value in labels.items())
