"""Field coercions with the engine's leniency: pydantic's lax mode over decoded JSON."""

from __future__ import annotations

from typing import Any

from sgl_router.tokenization.errors import invalid

__all__ = ["as_bool", "as_int", "as_object", "as_optional_str", "as_the_engine_parses", "type_name"]

_TRUE_WORDS = frozenset({"1", "on", "t", "true", "y", "yes"})
_FALSE_WORDS = frozenset({"0", "off", "f", "false", "n", "no"})


def type_name(value: Any) -> str:
    """The JSON name of a decoded value's type."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "an array" if isinstance(value, list) else "an object"


def as_optional_str(value: Any, path: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise invalid(path, f"must be a string, got {type_name(value)}")


def as_object(value: Any, path: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise invalid(path, f"must be an object, got {type_name(value)}")


def as_bool(value: Any, path: str) -> bool:
    """true, false, 0, 1 and the usual words for them."""
    if isinstance(value, bool):
        return value
    if isinstance(value, (int, float)) and value in (0, 1):
        return bool(value)
    if isinstance(value, str):
        word = value.lower()
        if word in _TRUE_WORDS:
            return True
        if word in _FALSE_WORDS:
            return False
    raise invalid(path, f"must be a boolean, got {type_name(value)}")


def as_int(value: Any, path: str) -> int:
    """Integers, integral floats, and strings of digits."""
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            pass
    raise invalid(path, f"must be an integer, got {type_name(value)}")


def as_the_engine_parses(value: Any, path: str) -> Any:
    """Decoded JSON with integers that need more than 64 bits as the floats the engine's parser makes of them."""
    if isinstance(value, dict):
        return {key: as_the_engine_parses(item, path) for key, item in value.items()}
    if isinstance(value, list):
        return [as_the_engine_parses(item, path) for item in value]
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        try:
            return float(value)
        except OverflowError:
            raise invalid(path, "holds a number out of range") from None
    return value
