from __future__ import annotations

import copy
from typing import Any

import pytest

from sgl_router.tokenization.json_schema_types import normalize_schema_types


@pytest.mark.parametrize(
    ("loose", "standard"),
    [
        ("string", "string"),
        ("STRING", "string"),
        ("varchar(255)", "string"),
        (" UUID ", "string"),
        ("int32", "integer"),
        ("INT", "integer"),
        ("unsigned int", "integer"),
        ("bigint", "integer"),
        ("float64", "number"),
        ("decimal(10,2)", "number"),
        ("num", "number"),
        ("number", "number"),
        ("bool", "boolean"),
        ("list[str]", "array"),
        ("dict[str, int]", "object"),
        ("map", "object"),
        ("null", "null"),
        ("internal", "internal"),
        ("list_price", "list_price"),
        ("Weird", "Weird"),
        ("", ""),
    ],
)
def test_names(loose: str, standard: str) -> None:
    assert normalize_schema_types({"type": loose}) == {"type": standard}


def test_lists_of_types_lose_duplicates() -> None:
    assert normalize_schema_types({"type": ["varchar", "null", "str", 1]}) == {"type": ["string", "null", 1]}


def test_every_nesting_keyword_is_followed_and_nothing_else() -> None:
    loose: Any = {"type": "int"}
    strict: Any = {"type": "integer"}
    maps = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
    lists = ("anyOf", "oneOf", "allOf", "prefixItems")
    single = ["items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames"]
    single += ["unevaluatedItems", "unevaluatedProperties"]
    others = {"default": loose, "enum": ["int"], "const": loose, "title": "int", "required": ["type"]}

    def schema(inner: Any) -> dict[str, Any]:
        nested: dict[str, Any] = {key: {"type": inner} for key in maps}
        nested.update({key: [inner, True] for key in lists})
        nested.update(dict.fromkeys(single, inner))
        return {**nested, **others}

    given = schema(loose)
    before = copy.deepcopy(given)
    assert normalize_schema_types(given) == schema(strict)
    assert given == before


def test_key_order_is_kept_and_an_unchanged_schema_is_returned_itself() -> None:
    given = {"b": 1, "type": "str", "a": {"type": "x"}}
    assert list(normalize_schema_types(given)) == ["b", "type", "a"]
    same = {"type": "object", "properties": {"q": {"type": ["string", "null"]}}, "anyOf": [{"type": "null"}]}
    assert normalize_schema_types(same) is same


@pytest.mark.parametrize("value", [None, True, "int", 3, [], {}])
def test_other_values_pass_through(value: Any) -> None:
    assert normalize_schema_types(value) == value


def test_a_list_of_schemas_is_followed() -> None:
    assert normalize_schema_types([{"type": "int"}, 1]) == [{"type": "integer"}, 1]


def test_malformed_keywords_are_left_alone() -> None:
    odd = {"type": {"a": 1}, "properties": [1], "anyOf": {"type": "int"}}
    assert normalize_schema_types(odd) == odd
