"""The smallest document that satisfies a JSON schema: what the mock model says where its output is constrained.

Guarantees: the same schema gives the same document; properties that are not required are left out, so schemas that
refer to themselves end wherever an instance can end.
Failure modes: `Unsatisfiable` for schemas that allow nothing, that need more than `MAX_DEPTH` levels, or that use a
keyword whose smallest instance cannot be told (a `pattern` without an example).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["MAX_DEPTH", "Unsatisfiable", "minimal_instance"]

MAX_DEPTH = 32
MAX_LENGTH = 4096

_FORMATS = {
    "date": "2026-01-01",
    "date-time": "2026-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "duration": "PT0S",
    "email": "a@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://example.com/",
    "url": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


class Unsatisfiable(ValueError):
    """No instance of the schema can be given; the message says which part."""


def minimal_instance(schema: Any) -> Any:
    """An instance of `schema` (a dict, or True for anything) as plain JSON data. Raises Unsatisfiable."""
    return _Instances(schema).of(schema, 0)


class _Instances:
    def __init__(self, root: Any) -> None:
        self._root = root

    def of(self, schema: Any, depth: int) -> Any:
        if schema is True or schema == {}:
            return None
        if not isinstance(schema, Mapping):
            raise Unsatisfiable("a schema must be an object or true")
        if depth > MAX_DEPTH:
            raise Unsatisfiable(f"the schema needs more than {MAX_DEPTH} levels")
        if "$ref" in schema:
            rest = {key: value for key, value in schema.items() if key != "$ref"}
            return self.of(_merged(self._resolved(schema["$ref"]), rest), depth + 1)
        for key in ("const", "default"):
            if key in schema:
                return schema[key]
        for key in ("enum", "examples"):
            if isinstance(schema.get(key), list) and schema[key]:
                return schema[key][0]
        if isinstance(schema.get("allOf"), list):
            merged: Mapping[str, Any] = {key: value for key, value in schema.items() if key != "allOf"}
            for part in schema["allOf"]:
                merged = _merged(merged, self._inlined(part))
            return self.of(merged, depth + 1)
        for key in ("anyOf", "oneOf"):
            if isinstance(schema.get(key), list):
                return self._first_of(schema, key, depth)
        return self._typed(schema, depth)

    def _first_of(self, schema: Mapping[str, Any], key: str, depth: int) -> Any:
        rest = {name: value for name, value in schema.items() if name != key}
        failure: Unsatisfiable | None = None
        for part in schema[key]:
            try:
                return self.of(_merged(rest, self._inlined(part)), depth + 1)
            except Unsatisfiable as error:
                failure = error
        raise failure or Unsatisfiable(f"{key} must not be empty")

    def _typed(self, schema: Mapping[str, Any], depth: int) -> Any:
        kind = schema.get("type", _implied_type(schema))
        if isinstance(kind, list):
            kind = kind[0] if kind else None
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, depth)
        if kind == "string":
            return _string(schema)
        if kind in ("integer", "number"):
            return _number(schema, whole=kind == "integer")
        if kind == "boolean":
            return False
        if kind in ("null", None):
            return None
        raise Unsatisfiable(f"unknown type {kind!r}")

    def _object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        properties = schema.get("properties") or {}
        return {name: self.of(properties.get(name, True), depth + 1) for name in schema.get("required") or ()}

    def _array(self, schema: Mapping[str, Any], depth: int) -> list[Any]:
        count = _count(schema, "minItems")
        first = list(schema.get("prefixItems") or ())[:count]
        items = schema.get("items", True)
        return [self.of(part, depth + 1) for part in (*first, *[items] * (count - len(first)))]

    def _inlined(self, part: Any) -> Any:
        """`part` with a reference at its top replaced by what it refers to, so that it can be merged."""
        for _ in range(MAX_DEPTH):
            if not (isinstance(part, Mapping) and "$ref" in part):
                return part
            part = _merged(self._resolved(part["$ref"]), {k: v for k, v in part.items() if k != "$ref"})
        raise Unsatisfiable("a reference refers to itself")

    def _resolved(self, reference: Any) -> Any:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise Unsatisfiable(f"only references inside the schema can be followed, not {reference!r}")
        found = self._root
        for step in filter(None, reference[1:].split("/")):
            name = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, Mapping) or name not in found:
                raise Unsatisfiable(f"{reference!r} refers to nothing")
            found = found[name]
        return found


def _merged(one: Any, other: Any) -> Any:
    """Both at once, as far as an instance can show it: properties and required names add up, the rest is replaced."""
    if other is True or other == {}:
        return one
    if one is True or one == {}:
        return other
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        raise Unsatisfiable("a schema must be an object or true")
    merged = {**one, **other}
    if "properties" in one and "properties" in other:
        merged["properties"] = {**one["properties"], **other["properties"]}
    if "required" in one and "required" in other:
        merged["required"] = list(dict.fromkeys([*one["required"], *other["required"]]))
    return merged


def _implied_type(schema: Mapping[str, Any]) -> str | None:
    for kind, keys in (
        ("object", ("properties", "required", "additionalProperties")),
        ("array", ("items", "prefixItems", "minItems")),
        ("string", ("minLength", "pattern", "format")),
        ("number", ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")),
    ):
        if any(key in schema for key in keys):
            return kind
    return None


def _count(schema: Mapping[str, Any], key: str) -> int:
    count = schema.get(key, 0)
    if type(count) is not int or not 0 <= count <= MAX_LENGTH:
        raise Unsatisfiable(f"{key} must be an integer from 0 to {MAX_LENGTH}, not {count!r}")
    return count


def _string(schema: Mapping[str, Any]) -> str:
    text = str(_FORMATS.get(schema.get("format", ""), ""))
    text = text.ljust(_count(schema, "minLength"), "a")
    pattern = schema.get("pattern")
    if pattern is None:
        return text
    try:
        known = re.compile(pattern)
    except (re.error, TypeError) as error:
        raise Unsatisfiable(f"the pattern {pattern!r} is not valid") from error
    for candidate in (text, "a", "A", "0", "a0", "00", "000", "0000", "00000", "a@example.com", "2026-01-01", "+10"):
        if known.search(candidate) and len(candidate) >= len(text):
            return candidate
    raise Unsatisfiable(f"no text for the pattern {pattern!r}: give the property an example")


def _number(schema: Mapping[str, Any], *, whole: bool) -> float | int:
    step = schema.get("multipleOf", 1)
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high, below = schema.get("maximum"), schema.get("exclusiveMaximum")
    for bound in (step, low, above, high, below):
        if bound is not None and (isinstance(bound, bool) or not isinstance(bound, (int, float))):
            raise Unsatisfiable(f"a bound must be a number, not {bound!r}")
    if step <= 0:
        raise Unsatisfiable(f"multipleOf must be above 0, not {step!r}")

    def fits(value: float | int) -> bool:
        return (
            (low is None or value >= low)
            and (above is None or value > above)
            and (high is None or value <= high)
            and (below is None or value < below)
        )

    candidates: list[float | int] = [0]
    lowest = max((bound for bound in (low, above) if bound is not None), default=None)
    if lowest is not None:
        multiple = math.ceil(lowest / step)
        candidates += [multiple * step, (multiple + 1) * step]
    highest = min((bound for bound in (high, below) if bound is not None), default=None)
    if highest is not None:
        multiple = math.floor(highest / step)
        candidates += [multiple * step, (multiple - 1) * step]
    if not whole and "multipleOf" not in schema and lowest is not None and highest is not None:
        candidates += [lowest, (lowest + highest) / 2]
    for value in candidates:
        if fits(value) and (not whole or float(value).is_integer()):
            return int(value) if float(value).is_integer() else value
    raise Unsatisfiable("no number is within the bounds of the schema")
