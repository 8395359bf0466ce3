"""Checks raw data against a Struct type and reports every problem with its exact path, where a decoder stops at one."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from typing import Any, Final

from msgspec import NODEFAULT, inspect

from sgl_router.config.errors import FieldError, Rejected, child, mismatch, missing, show, unknown_key
from sgl_router.config.suggest import keys_by_name, suggest_choice, suggest_key


class Invalid:
    """Stands in the checked tree for a value that was reported, so that its neighbours keep their positions."""

    def __repr__(self) -> str:
        return "INVALID"


INVALID: Final = Invalid()


class Walk:
    """One pass over raw data. `check` returns a tree ready for msgspec.convert and appends to `errors`."""

    def __init__(self, root: type) -> None:
        self.root = inspect.type_info(root)
        self.errors: list[FieldError] = []
        self._elsewhere = keys_by_name(self.root)

    def run(self, raw: object) -> Any:
        """Check `raw` against the root type."""
        return self.check(self.root, raw, "")

    def check(self, info: inspect.Type, value: object, path: str) -> Any:
        """The value as the field takes it, or INVALID after reporting why it cannot."""
        info, says = _unwrapped(info)
        if isinstance(info, inspect.UnionType):
            if value is None:
                return None
            (info,) = (one for one in info.types if not isinstance(one, inspect.NoneType))
            info, says = _unwrapped(info)
        if isinstance(info, inspect.StructType):
            return self._struct(info, value, path)
        expected = says.get("expected") or _expected(info)
        if isinstance(info, inspect.ListType):
            return self._list(info, value, path, expected)
        if isinstance(value, str):
            value = says.get("aliases", {}).get(value, value)
        if not isinstance(info, inspect.DictType):
            value = self._scalar(info, value, path, expected)
        return self._parsed(says["parse"], value, path) if "parse" in says and value is not INVALID else value

    def _struct(self, info: inspect.StructType, value: object, path: str) -> Any:
        if value is None and all(not field.required for field in info.fields):
            return {}  # a section whose keys are all commented out
        if not isinstance(value, Mapping):
            names = ", ".join(field.name for field in info.fields)
            self.errors.append(mismatch(path or "(top level)", value, f"a mapping with the keys {names}"))
            return INVALID
        fields = {field.name: field for field in info.fields}
        tree: dict[str, Any] = {}
        for key, given in value.items():
            below = child(path, key if isinstance(key, str) else show(key))
            if isinstance(key, str) and key in fields:
                tree[key] = self._field(fields[key], given, below)
            else:
                self.errors.append(unknown_key(below, given, suggest_key(key, list(fields), self._elsewhere)))
        for name, field in fields.items():
            if field.required and name not in tree:
                self.errors.append(missing(child(path, name), expected_of(field.type)))
                tree[name] = INVALID
        return tree

    def _field(self, field: inspect.Field, value: object, path: str) -> Any:
        before = len(self.errors)
        checked = self.check(field.type, value, path)
        if value is None and len(self.errors) > before and field.default not in (NODEFAULT, None):
            default = getattr(field.default, "value", field.default)
            default = show(default) if isinstance(default, bool) else default
            self.errors[-1] = mismatch(path, value, expected_of(field.type), f"leave the key out for {default}")
        return checked

    def _list(self, info: inspect.ListType, value: object, path: str, expected: str) -> Any:
        if not isinstance(value, (list, tuple)):
            one = isinstance(info.item_type, inspect.StructType) and isinstance(value, Mapping) and value
            hint = f"one entry needs its '- ' too, in TOML the heading [[{path}]]" if one else ""
            self.errors.append(mismatch(path, value, expected, hint))
            return INVALID
        if len(value) < (info.min_length or 0):
            self.errors.append(mismatch(path, value, expected))
            return INVALID
        return [self.check(info.item_type, item, child(path, index)) for index, item in enumerate(value)]

    def _parsed(self, parse: Any, value: object, path: str) -> Any:
        try:
            return parse(value)
        except Rejected as error:
            if error.key is not None and isinstance(value, Mapping):
                path, value = child(path, str(error.key)), value[error.key]
            self.errors.append(mismatch(path, value, error.expected, error.hint, shown=error.shown))
            return INVALID

    def _scalar(self, info: inspect.Type, value: object, path: str, expected: str) -> Any:
        hint = ""
        if isinstance(info, inspect.IntType):
            if isinstance(value, int) and not isinstance(value, bool) and _in_range(info, value):
                return value
            hint = _number_hint(value)
        elif isinstance(info, inspect.FloatType):
            number = _as_float(value)
            if number is not None and _in_range(info, number):
                return number
            hint = _number_hint(value)
        elif isinstance(info, inspect.StrType):
            if _is_text(value) and isinstance(value, str) and len(value) >= (info.min_length or 0):
                return value
            hint = _text_hint(value)
        elif isinstance(info, inspect.BoolType):
            if isinstance(value, bool):
                return value
            hint = _bool_hint(value)
        else:
            choices = _choices(info)
            if isinstance(value, str) and value in choices:
                return value
            hint = suggest_choice(value, choices)
        self.errors.append(mismatch(path, value, expected, hint))
        return INVALID


def _unwrapped(info: inspect.Type) -> tuple[inspect.Type, dict[str, Any]]:
    if isinstance(info, inspect.Metadata):
        return info.type, dict(info.extra or {})
    return info, {}


def expected_of(info: inspect.Type) -> str:
    """What a field of this type takes, in the words of the error messages."""
    inner, says = _unwrapped(info)
    return says.get("expected") or _expected(inner)


def _expected(info: inspect.Type) -> str:
    """What a type takes, from its own bounds."""
    if isinstance(info, (inspect.IntType, inspect.FloatType)):
        noun = "an integer" if isinstance(info, inspect.IntType) else "a number"
        if info.ge is not None and info.le is not None:
            return f"{noun} from {info.ge} to {info.le}"
        bounds = {"of at least": info.ge, "above": info.gt, "at most": info.le, "below": info.lt}
        words = ", ".join(f"{word} {bound}" for word, bound in bounds.items() if bound is not None)
        return f"{noun} {words}".rstrip()
    if isinstance(info, inspect.StructType):
        return "a mapping with the keys " + ", ".join(field.name for field in info.fields)
    if isinstance(info, (inspect.LiteralType, inspect.EnumType)):
        return "one of " + ", ".join(_choices(info))
    if isinstance(info, inspect.BoolType):
        return "true or false"
    return "a string" if isinstance(info, inspect.StrType) else "a list"


def _choices(info: inspect.Type) -> list[str]:
    if isinstance(info, inspect.EnumType):
        return [str(member.value) for member in info.cls]
    return [str(value) for value in info.values] if isinstance(info, inspect.LiteralType) else []


def _is_text(value: object) -> bool:
    """A string that can be printed and encoded: no control characters, no lone surrogates."""
    return isinstance(value, str) and not any(unicodedata.category(char) in ("Cc", "Cs") for char in value)


def _as_float(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _in_range(info: inspect.IntType | inspect.FloatType, value: float) -> bool:
    return not (
        (info.ge is not None and value < info.ge)
        or (info.gt is not None and value <= info.gt)
        or (info.le is not None and value > info.le)
        or (info.lt is not None and value >= info.lt)
    )


def _number_hint(value: object) -> str:
    if isinstance(value, str):
        try:
            float(value.replace("_", "x"))
        except ValueError:
            return ""
        return "a number, not a string: no quotes, no leading zeros"
    return "it must be finite" if isinstance(value, float) and not math.isfinite(value) else ""


def _text_hint(value: object) -> str:
    if isinstance(value, str):
        return "it holds control characters" if value and not _is_text(value) else ""
    return "quote it to make it a string" if isinstance(value, (bool, int, float)) else ""


def _bool_hint(value: object) -> str:
    quoted = isinstance(value, str) and value.lower() in ("true", "false", "yes", "no", "on", "off")
    return "no quotes, and neither yes nor no" if quoted else ""
