"""The smallest document of a schema satisfies it, by the judgement of a validator that is not ours."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_router.lab.mock_worker.minimal_instance import MAX_DEPTH, Unsatisfiable, minimal_instance

_NODE: dict[str, Any] = {
    "type": "object",
    "properties": {"value": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
    "required": ["value"],
}


@pytest.mark.parametrize(
    ("schema", "smallest"),
    [
        ({}, None),
        (True, None),
        ({"type": "object"}, {}),
        ({"type": "object", "properties": {"a": {"type": "string"}, "b": True}, "required": ["a"]}, {"a": ""}),
        ({"properties": {"a": {"type": "boolean"}}, "required": ["a", "extra"]}, {"a": False, "extra": None}),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 2}, [0, 0]),
        ({"type": "array", "prefixItems": [{"const": "x"}], "items": {"type": "null"}, "minItems": 2}, ["x", None]),
        ({"type": ["string", "null"]}, ""),
        ({"type": "string", "minLength": 3}, "aaa"),
        ({"type": "string", "pattern": "^[0-9]{3}$"}, "000"),
        ({"type": "string", "format": "date"}, "2026-01-01"),
        ({"enum": ["red", "green"]}, "red"),
        ({"type": "integer", "minimum": 3}, 3),
        ({"type": "integer", "exclusiveMinimum": 3, "multipleOf": 4}, 4),
        ({"type": "integer", "maximum": -5, "multipleOf": 3}, -6),
        ({"type": "number", "exclusiveMinimum": 0.25, "maximum": 0.5}, 0.375),
        ({"allOf": [{"$ref": "#/$defs/n"}, {"minimum": 2}], "$defs": {"n": {"type": "integer"}}}, 2),
        ({"oneOf": [{"type": "integer", "minimum": 1, "maximum": 0}, {"type": "string"}]}, ""),
        ({"$ref": "#/$defs/node", "$defs": {"node": _NODE}}, {"value": 0}),
        ({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"const": 7}}}, 7),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_the_smallest_instance(schema: Any, smallest: Any) -> None:
    made = minimal_instance(schema)
    assert (type(made), made) == (type(smallest), smallest)
    jsonschema.validate(made, schema)


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "thing"}, "unknown type 'thing'"),
        ({"type": "integer", "minimum": 2, "maximum": 1}, "no number"),
        ({"type": "string", "pattern": "^zebra-[0-9]{9}$"}, "give the property an example"),
        ({"type": "string", "pattern": "("}, "is not valid"),
        ({"$ref": "#/$defs/none"}, "refers to nothing"),
        ({"$ref": "https://example.com/schema"}, "only references inside"),
        ({"$ref": "#"}, f"more than {MAX_DEPTH} levels"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, f"more than {MAX_DEPTH} levels"),
        ({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"$ref": "#/$defs/a"}}}, "refers to itself"),
        ({"type": "array", "minItems": 10**9}, "minItems must be"),
        ({"type": "number", "multipleOf": 0}, "multipleOf must be above 0"),
        ({"anyOf": []}, "must not be empty"),
        (5, "must be an object"),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_what_has_no_instance_says_why(schema: Any, says: str) -> None:
    with pytest.raises(Unsatisfiable, match=says.replace("(", r"\(")):
        minimal_instance(schema)


_scalars = st.one_of(
    st.fixed_dictionaries({"type": st.just("string"), "minLength": st.integers(0, 9)}),
    st.fixed_dictionaries(
        {"type": st.just("integer"), "minimum": st.integers(-50, 50), "multipleOf": st.integers(1, 9)}
    ),
    st.fixed_dictionaries({"type": st.just("number"), "exclusiveMaximum": st.integers(-50, 50)}),
    st.fixed_dictionaries({"enum": st.lists(st.one_of(st.text(), st.integers(), st.none()), min_size=1)}),
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {}]),
)


def _grown(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.fixed_dictionaries({"type": st.just("array"), "items": inner, "minItems": st.integers(0, 3)}),
        st.dictionaries(st.text(max_size=4), inner, max_size=4).map(
            lambda properties: {"type": "object", "properties": properties, "required": sorted(properties)[:2]}
        ),
        st.fixed_dictionaries({"anyOf": st.lists(inner, min_size=1, max_size=3)}),
    )


@given(st.recursive(_scalars, _grown, max_leaves=12))
def test_every_schema_of_these_shapes_has_its_instance(schema: Any) -> None:
    jsonschema.validate(minimal_instance(schema), schema)
