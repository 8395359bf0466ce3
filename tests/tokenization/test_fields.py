from __future__ import annotations

from typing import Any

import pytest

from sgl_router.tokenization import Unrenderable
from sgl_router.tokenization.fields import as_bool, as_int, as_object, as_optional_str, type_name


@pytest.mark.parametrize("value", [True, 1, 1.0, "1", "TRUE", "yes", "On", "t", "y"])
def test_true(value: Any) -> None:
    assert as_bool(value, "x") is True


@pytest.mark.parametrize("value", [False, 0, 0.0, "0", "False", "no", "OFF", "f", "n"])
def test_false(value: Any) -> None:
    assert as_bool(value, "x") is False


@pytest.mark.parametrize("value", [None, 2, 0.5, "maybe", "", [], {}])
def test_no_boolean(value: Any) -> None:
    with pytest.raises(Unrenderable, match="flag: must be a boolean"):
        as_bool(value, "flag")


@pytest.mark.parametrize(("value", "expected"), [(3, 3), (True, 1), (2.0, 2), ("7", 7), ("-1", -1)])
def test_integers(value: Any, expected: int) -> None:
    assert as_int(value, "x") == expected
    assert type(as_int(value, "x")) is int


@pytest.mark.parametrize("value", [None, 2.5, "x", "", [], {}, float("inf")])
def test_no_integer(value: Any) -> None:
    with pytest.raises(Unrenderable, match="index: must be an integer"):
        as_int(value, "index")


def test_strings_and_objects() -> None:
    assert as_optional_str(None, "x") is None
    assert as_optional_str("a", "x") == "a"
    with pytest.raises(Unrenderable, match="name: must be a string, got a number"):
        as_optional_str(1, "name")
    assert as_object({"a": 1}, "x") == {"a": 1}
    with pytest.raises(Unrenderable, match="tool: must be an object, got null"):
        as_object(None, "tool")


def test_types_are_named_as_in_json() -> None:
    values: list[Any] = [None, True, 1, 1.5, "", [], {}]
    names = [type_name(value) for value in values]
    assert names == ["null", "a boolean", "a number", "a number", "a string", "an array", "an object"]
