"""Kubernetes label syntax and equality-only selectors."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sgl_router.config.errors import Rejected

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?\Z")
_DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")
_SET_BASED = re.compile(r"(?:\s|^)(?:not)?in\s*\(")
_EXPECTED = "a selector of equalities, {label: value} or 'label=value,label2=value2'"
_KEY = "a label name like app or app.kubernetes.io/name, its last part at most 63 of A-Z a-z 0-9 - _ ."
_VALUE = "a label value: a string of at most 63 of A-Z a-z 0-9 - _ ., letters or digits at both ends"


def parse_namespace(text: str) -> str:
    """A namespace's name (RFC 1123 label); raises Rejected."""
    if not _DNS_LABEL.match(text):
        raise Rejected("the name of a Kubernetes namespace", "at most 63 of a-z 0-9 -, letters or digits at both ends")
    return text


def parse_annotation(text: str) -> str:
    """An annotation's name; raises Rejected."""
    if not is_label_key(text):
        raise Rejected("the name of an annotation, like sglang.ai/bootstrap-port")
    return text


def is_label_key(text: str) -> bool:
    """Whether `text` can be the key of a label or an annotation: an optional DNS prefix and a name."""
    prefix, slash, name = text.rpartition("/")
    if slash and not (0 < len(prefix) <= 253 and all(_DNS_LABEL.match(part) for part in prefix.split("."))):
        return False
    return _NAME.match(name) is not None


def is_label_value(text: str) -> bool:
    """Whether `text` can be the value of a label; the empty string can."""
    return text == "" or _NAME.match(text) is not None


def parse_selector(value: object) -> dict[str, str]:
    """The labels a pod must carry, from either spelling; raises Rejected for anything but equalities."""
    if isinstance(value, Mapping):
        return _from_mapping(value)
    if isinstance(value, str):
        return _from_text(value)
    raise Rejected(_EXPECTED)


def _from_mapping(value: Mapping[object, object]) -> dict[str, str]:
    if not value:
        raise Rejected(_EXPECTED, "an empty selector would match every pod")
    labels: dict[str, str] = {}
    for key, label in value.items():
        if key == "matchLabels":
            raise Rejected(_EXPECTED, "write the labels directly, without matchLabels", key=key)
        if key == "matchExpressions":
            raise Rejected(_EXPECTED, "only equalities are supported", key=key)
        if not isinstance(key, str) or not is_label_key(key):
            raise Rejected(_KEY, "this is the name, not the value", key=key, shown=repr(key)[:80])
        if isinstance(label, (bool, int, float)):
            raise Rejected(_VALUE, "quote it", key=key)
        if not isinstance(label, str):
            raise Rejected(_VALUE, key=key)
        if not is_label_value(label):
            hint = "only equalities are supported" if _SET_BASED.search(label) or label.startswith("!") else ""
            raise Rejected(_VALUE, hint, key=key)
        labels[key] = label
    return labels


def _from_text(text: str) -> dict[str, str]:
    if _SET_BASED.search(text):
        raise Rejected(_EXPECTED, "set-based terms, in (...) and notin (...), are not supported")
    if not text.strip():
        raise Rejected(_EXPECTED, "an empty selector would match every pod")
    labels: dict[str, str] = {}
    for term in text.split(","):
        key, label = _from_term(term.strip())
        if labels.get(key, label) != label:
            raise Rejected(_EXPECTED, f"{key} cannot be {labels[key]!r} and {label!r} at once")
        labels[key] = label
    return labels


def _from_term(term: str) -> tuple[str, str]:
    if not term:
        raise Rejected(_EXPECTED, "there is nothing between two commas, or after the last")
    if "!=" in term:
        raise Rejected(_EXPECTED, f"{term!r} is an inequality; only equalities are supported")
    key, equals, label = term.partition("=")
    key, label = key.strip(), label.removeprefix("=").strip()
    if not equals:
        what = "asks for the absence of a label" if term.startswith("!") else "has no value"
        raise Rejected(_EXPECTED, f"{term!r} {what}; only equalities are supported")
    if not is_label_key(key):
        raise Rejected(_EXPECTED, f"{key!r} is not a label name")
    if not is_label_value(label):
        hint = "separate the terms by commas" if " " in label else "at most 63 of A-Z a-z 0-9 - _ ."
        raise Rejected(_EXPECTED, f"{label!r} is not a label value: {hint}")
    return key, label
