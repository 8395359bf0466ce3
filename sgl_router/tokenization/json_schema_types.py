"""The engine's rewriting of loose `type` names in tool schemas, which reaches the rendered prompt.

Database and ORM tooling writes `varchar` or `int32` where JSON Schema says `string` or `integer`; the engine maps
them before it renders, so the router must as well. Names it does not know stay as they are.
"""

from __future__ import annotations

from typing import Any

__all__ = ["normalize_schema_types"]

_STANDARD = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})

_ALIASES: dict[str, str] = {
    **dict.fromkeys(("str", "text", "varchar", "char", "enum", "uuid"), "string"),
    **dict.fromkeys(("date", "datetime", "time", "timestamp"), "string"),
    **dict.fromkeys(("binary", "blob", "bytea", "bytes", "varbinary"), "string"),
    "bool": "boolean",
    **dict.fromkeys(("bigint", "smallint", "tinyint"), "integer"),
    **dict.fromkeys(("double", "decimal", "real", "numeric"), "number"),
    **dict.fromkeys(("arr", "tuple", "set"), "array"),
    "map": "object",
}
# A stem counts when it is the whole name or is followed by one of `_STEM_ENDS`: int32, float(8), list[str].
_STEMS: tuple[tuple[str, str], ...] = (
    ("int", "integer"),
    ("uint", "integer"),
    ("long", "integer"),
    ("short", "integer"),
    ("unsigned", "integer"),
    ("num", "number"),
    ("float", "number"),
    ("list", "array"),
    ("dict", "object"),
)
_STEM_ENDS = frozenset("0123456789[<( \t")

_MAPS_OF_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS_OF_SCHEMAS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SCHEMAS = (
    "items",
    "additionalProperties",
    "not",
    "if",
    "then",
    "else",
    "contains",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
)
_NESTING_KEYS = frozenset((*_MAPS_OF_SCHEMAS, *_LISTS_OF_SCHEMAS, *_SCHEMAS))


def normalize_schema_types(schema: Any) -> Any:
    """The schema with standard type names; `schema` itself is never changed, and is returned where nothing differs."""
    if isinstance(schema, list):
        return _each(schema)
    if not isinstance(schema, dict):
        return schema
    changes: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "type":
            new = _type(value)
        elif key not in _NESTING_KEYS:
            continue
        elif key in _SCHEMAS:
            new = normalize_schema_types(value)
        elif key in _LISTS_OF_SCHEMAS:
            new = _each(value) if isinstance(value, list) else value
        else:
            new = _values(value) if isinstance(value, dict) else value
        if new is not value:
            changes[key] = new
    return {**schema, **changes} if changes else schema


def _each(items: list[Any]) -> list[Any]:
    new = [normalize_schema_types(item) for item in items]
    return items if all(a is b for a, b in zip(new, items, strict=True)) else new


def _values(items: dict[str, Any]) -> dict[str, Any]:
    new = {key: normalize_schema_types(value) for key, value in items.items()}
    return items if all(new[key] is value for key, value in items.items()) else new


def _type(value: Any) -> Any:
    if isinstance(value, str):
        return _name(value)
    if not isinstance(value, list):
        return value
    new: list[Any] = []
    for item in value:
        name = _name(item) if isinstance(item, str) else item
        if name not in new:
            new.append(name)
    return value if new == value else new


def _name(raw: str) -> str:
    if raw in _STANDARD:
        return raw
    name = raw.split("(", 1)[0].strip().lower()
    if name in _STANDARD:
        return name
    alias = _ALIASES.get(name)
    if alias is not None:
        return alias
    for stem, target in _STEMS:
        if name.startswith(stem) and (len(name) == len(stem) or name[len(stem)] in _STEM_ENDS):
            return target
    return raw
