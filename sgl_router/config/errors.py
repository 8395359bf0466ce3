"""What a bad configuration is reported as: every problem, each with its path, the given value and what was expected."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

_MAX_SHOWN = 80
_SECRET_KEY = re.compile(
    r"api_?key|(?<!_per_1k_)token(?!izer|s_per)|secret|passw|credential|authorization", re.IGNORECASE
)
_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


class FieldError(msgspec.Struct, frozen=True, kw_only=True):
    """One problem. `path` is "" when the whole file is at fault; `value` is as shown, None where none was given."""

    path: str
    message: str
    value: str | None = None
    expected: str | None = None

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ConfigError(Exception):
    """The configuration cannot be used. `errors` holds every problem found; str() is one line for each."""

    def __init__(self, errors: Iterable[FieldError]) -> None:
        self.errors = list(errors)
        super().__init__("\n".join(str(error) for error in self.errors))


class Rejected(ValueError):
    """A value its field cannot take. `shown` replaces the value in messages, `key` says which entry of a mapping."""

    def __init__(self, expected: str, hint: str = "", *, key: object = None, shown: str | None = None) -> None:
        super().__init__(f"expected {expected}" + (f" ({hint})" if hint else ""))
        self.expected = expected
        self.hint = hint
        self.key = key
        self.shown = shown


def child(path: str, key: object) -> str:
    """The path of `key` below `path`: list positions in brackets, keys that are not plain names quoted."""
    if isinstance(key, int) and not isinstance(key, bool):
        return f"{path}[{key}]"
    if isinstance(key, str) and _PLAIN_KEY.match(key):
        return f"{path}.{key}" if path else key
    shown = _clipped(key)
    return f"{path}[{shown}]" if path else shown


def show(value: object, path: str = "") -> str:
    """`value` as one short line that is safe in a log: clipped, and not at all below a key that names a secret."""
    if _SECRET_KEY.search(path.rpartition(".")[2]) and value is not None:
        return "a value not shown here"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, (list, tuple, set, frozenset)):
        return "a list" if value else "an empty list"
    if isinstance(value, (str, int, float)):
        return _clipped(value)
    return f"a {type(value).__name__} ({_clipped(str(value))})"


def mismatch(path: str, value: object, expected: str, hint: str = "", *, shown: str | None = None) -> FieldError:
    """`value` is there but is not what `expected` says."""
    shown = show(value, path) if shown is None else shown
    message = f"expected {expected}, got {shown}" + (f" ({hint})" if hint else "")
    return FieldError(path=path, message=message, value=shown, expected=expected)


def missing(path: str, expected: str) -> FieldError:
    """A required key is absent."""
    return FieldError(path=path, message=f"required but missing: expected {expected}", expected=expected)


def unknown_key(path: str, value: object, hint: str) -> FieldError:
    """A key that the schema does not have; `hint` says what it may have meant."""
    shown = show(value, path)
    return FieldError(path=path, message=f"unknown key, set to {shown}; {hint}", value=shown, expected=hint)


def _clipped(value: Any) -> str:
    try:
        shown = repr(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python prints
        return "a value too long to show"
    return shown if len(shown) <= _MAX_SHOWN else f"{shown[: _MAX_SHOWN - 4]}...{shown[-1]}"
