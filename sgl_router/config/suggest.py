"""What a mistyped key or value may have meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence

from msgspec import inspect

_CAMEL_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def keys_by_name(root: inspect.Type) -> dict[str, list[str]]:
    """Every key of the schema, with the paths where it stands."""
    found: dict[str, list[str]] = {}
    for path in schema_paths(root):
        found.setdefault(path.rpartition(".")[2], []).append(path)
    return found


def schema_paths(info: inspect.Type, path: str = "") -> Iterator[str]:
    """The path of every key below a type; list items are `[]`."""
    if isinstance(info, inspect.Metadata):
        yield from schema_paths(info.type, path)
    elif isinstance(info, inspect.UnionType):
        for one in info.types:
            yield from schema_paths(one, path)
    elif isinstance(info, inspect.ListType):
        yield from schema_paths(info.item_type, f"{path}[]")
    elif isinstance(info, inspect.StructType):
        for field in info.fields:
            below = f"{path}.{field.name}" if path else field.name
            yield below
            yield from schema_paths(field.type, below)


def suggest_key(key: object, valid: Sequence[str], elsewhere: Mapping[str, Sequence[str]]) -> str:
    """For an unknown key: the nearest valid key here, else where a key of this name belongs, else all valid keys."""
    name = _folded(key)
    if nearest := _nearest(name, valid):
        return f"did you mean '{nearest}'?"
    if places := elsewhere.get(name):
        return "it belongs at " + " or ".join(places)
    return "valid keys here: " + ", ".join(valid)


def suggest_choice(value: object, choices: Sequence[str]) -> str:
    """For a value outside an enumeration: the nearest one, or nothing."""
    nearest = _nearest(_folded(value), choices) if isinstance(value, str) else None
    return f"did you mean '{nearest}'?" if nearest else ""


def _nearest(name: str, choices: Sequence[str]) -> str | None:
    return next(iter(difflib.get_close_matches(name[:100], choices, n=1, cutoff=0.7)), None)


def _folded(key: object) -> str:
    """`maxBodyBytes` and `max-body-bytes` as `max_body_bytes`."""
    return _CAMEL_HUMP.sub("_", key).replace("-", "_").lower() if isinstance(key, str) else ""
