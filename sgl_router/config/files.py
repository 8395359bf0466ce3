"""Config files to raw mappings: YAML and TOML, chosen by extension."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgl_router.config.errors import ConfigError, FieldError, child, show

if TYPE_CHECKING:
    from yaml import Node

MAX_FILE_BYTES = 4 << 20


def read_mapping(path: Path) -> dict[Any, Any]:
    """The file's content; raises ConfigError when it cannot be read, parsed, or is not a mapping."""
    parsers = {".yaml": _parse_yaml, ".yml": _parse_yaml, ".toml": _parse_toml}
    parse = parsers.get(path.suffix.lower())
    if parse is None:
        given = f"got {path.suffix!r}" if path.suffix else "got none"
        raise _file_error(path, f"expected the extension .yaml, .yml or .toml, {given}")
    raw = parse(path, _read_text(path))
    if raw is None or raw == {}:
        raise _file_error(path, "the file is empty: expected at least the keys models and discovery")
    if not isinstance(raw, dict):
        raise _file_error(path, f"expected a mapping of sections, got {show(raw)}")
    return raw


def _file_error(path: Path, message: str) -> ConfigError:
    return ConfigError([FieldError(path="", message=f"{path}: {message}", value=str(path))])


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise _file_error(path, "no such file") from None
    except IsADirectoryError:
        raise _file_error(path, "is a directory, expected a file") from None
    except (OSError, ValueError) as error:
        raise _file_error(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > MAX_FILE_BYTES:
        raise _file_error(path, f"is larger than {MAX_FILE_BYTES} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _file_error(path, f"is not UTF-8 (byte {error.start})") from None


def _parse_toml(path: Path, text: str) -> Any:
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        return toml.loads(text)
    except (ValueError, RecursionError) as error:
        raise _file_error(path, f"not valid TOML: {_reason(error)}") from None


def _parse_yaml(path: Path, text: str) -> Any:
    import yaml

    try:
        loader = _loader_class()(text)
        node = loader.get_single_node()
        if duplicates := list(_duplicate_keys(node)):
            raise ConfigError(duplicates)
        return None if node is None else loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        what = "; ".join(part for part in (error.context, error.problem) if part)
        raise _file_error(path, f"not valid YAML: {what}{where}") from None
    except yaml.YAMLError as error:
        raise _file_error(path, f"not valid YAML: {' '.join(str(error).split())}") from None
    except (ValueError, RecursionError) as error:
        raise _file_error(path, f"not valid YAML: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _loader_class() -> Any:
    """A safe loader with the YAML 1.2 core schema.

    YAML 1.1, PyYAML's own, reads `no` and `on` as booleans, 0777 as octal and 1:30 as sixty-base: none of them is what
    an operator means. Here they are strings, and where a number is expected they are refused.
    """
    import re

    import yaml

    class CoreLoader(yaml.SafeLoader):
        yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    plain = {
        "null": (r"(?:~|null|Null|NULL|)", ["~", "n", "N", ""]),
        "bool": (r"(?:true|True|TRUE|false|False|FALSE)", list("tTfF")),
        "int": (r"(?:[-+]?(?:0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+)", list("-+0123456789")),
        "float": (
            r"(?:[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))",
            list("-+.0123456789"),
        ),
        "merge": (r"<<", ["<"]),
    }
    for tag, (pattern, first) in plain.items():
        CoreLoader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern + r"\Z"), first)
    return CoreLoader


def _duplicate_keys(node: Node | None, path: str = "", seen: set[int] | None = None) -> Iterator[FieldError]:
    """Keys given twice in one mapping, where YAML parsers let the last win. Each node once: aliases can form cycles."""
    seen = set() if seen is None else seen
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    kind = getattr(node, "id", "")
    if kind == "sequence":
        for index, item in enumerate(node.value):
            yield from _duplicate_keys(item, child(path, index), seen)
    elif kind == "mapping":
        lines: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            below = child(path, key.value if key.id == "scalar" else f"<{key.id}>")
            if key.id == "scalar" and key.value != "<<":
                name, line = (key.tag, key.value), key.start_mark.line + 1
                if name in lines:
                    yield _given_twice(below, lines[name], line)
                lines.setdefault(name, line)
            yield from _duplicate_keys(value, below, seen)


def _given_twice(path: str, first: int, second: int) -> FieldError:
    where = f"on line {first}" if first == second else f"on lines {first} and {second}"
    return FieldError(path=path, message=f"key given twice, {where}: expected each key once", expected="each key once")
