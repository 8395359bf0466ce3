"""Tool definitions and tool choice, in the shape the engine hands to a chat template."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import msgspec

from sgl_router.tokenization.errors import invalid
from sgl_router.tokenization.fields import as_bool, as_object, as_optional_str, as_the_engine_parses, type_name
from sgl_router.tokenization.json_schema_types import normalize_schema_types

__all__ = ["choose_tools", "dump_request_tools", "dump_tools"]

# Clients send the same tools with every request: this many lists are kept as dumped, each up to this size as JSON.
_KEPT_LISTS = 32
_KEPT_BYTES = 65_536

_LONG_NUMBER = re.compile(rb"[0-9]{19}")
_CHOICES = ("auto", "required", "none")


def dump_request_tools(raw: Any, *, twice: bool) -> list[dict[str, Any]]:
    """`dump_tools` of a request's own tools. What it returns may be shared: it is not to be changed."""
    try:
        encoded = msgspec.json.encode(raw)
    except (TypeError, ValueError, OverflowError, RecursionError):
        encoded = b""
    if not 0 < len(encoded) <= _KEPT_BYTES:
        return _dump_parsed(raw, encoded, twice)
    return _dumped(encoded, twice)


@lru_cache(maxsize=_KEPT_LISTS)
def _dumped(encoded: bytes, twice: bool) -> list[dict[str, Any]]:
    return _dump_parsed(msgspec.json.decode(encoded), encoded, twice)


def _dump_parsed(raw: Any, encoded: bytes, twice: bool) -> list[dict[str, Any]]:
    if _LONG_NUMBER.search(encoded):
        raw = as_the_engine_parses(raw, "tools")
    return dump_tools(raw, "tools", normalize=True, twice=twice)


def dump_tools(raw: Any, path: str, *, normalize: bool, twice: bool = False) -> list[dict[str, Any]]:
    """Every tool as the engine dumps it.

    The function keeps the client's key order; `description` and `parameters` the client left out are appended as
    null; `strict` and `defer_loading` appear in it only when set; the wrapper always carries `defer_loading`.
    `normalize` rewrites loose schema types, which the engine does for every tool the request can call. `twice` is
    for `/v1/tokenize`, which dumps, drops nulls and validates again, so that keys sent as null move to the end.
    """
    if not isinstance(raw, list):
        raise invalid(path, f"must be an array, got {type_name(raw)}")
    tools = [_dump_tool(tool, f"{path}[{i}]", normalize) for i, tool in enumerate(raw)]
    if not twice:
        return tools
    for tool in tools:
        tool["function"] = {key: value for key, value in tool["function"].items() if value is not None}
    return dump_tools(tools, path, normalize=False)


def _dump_tool(raw: Any, path: str, normalize: bool) -> dict[str, Any]:
    tool = as_object(raw, path)
    kind = tool.get("type", "function")
    if not isinstance(kind, str):
        raise invalid(f"{path}.type", f"must be a string, got {type_name(kind)}")
    deferred = _optional_bool(tool.get("defer_loading"), f"{path}.defer_loading")
    function = _dump_function(tool.get("function"), f"{path}.function", deferred, normalize)
    return {"type": kind, "function": function, "defer_loading": deferred}


def _dump_function(raw: Any, path: str, deferred: bool | None, normalize: bool) -> dict[str, Any]:
    function = as_object(raw, path)
    name = function.get("name")
    if not isinstance(name, str):
        raise invalid(f"{path}.name", f"must be a string, got {type_name(name)}")
    parameters = function.get("parameters")
    values: dict[str, Any] = {
        "description": as_optional_str(function.get("description"), f"{path}.description"),
        "name": name,
        "parameters": normalize_schema_types(parameters) if normalize else parameters,
    }
    strict = _optional_bool(function.get("strict"), f"{path}.strict")
    if strict is not None:
        values["strict"] = strict
    own = _optional_bool(function.get("defer_loading"), f"{path}.defer_loading")
    if own is None:
        own = deferred
    if own is not None:
        values["defer_loading"] = own
    dumped = {key: values.pop(key) for key in function if key in values}
    dumped.update(values)
    return dumped


def _optional_bool(value: Any, path: str) -> bool | None:
    return None if value is None else as_bool(value, path)


def choose_tools(
    tool_choice: Any, tools: list[dict[str, Any]], message_tools: list[dict[str, Any]], *, declared: bool
) -> list[dict[str, Any]] | None:
    """The tools a template sees, None for none of them.

    `tools` are the request's, `message_tools` those that system messages declare; `declared` says whether the
    request mentions tools at all, which decides the default choice.
    """
    if tool_choice is None:
        tool_choice = "auto" if declared else "none"
    available = [*tools, *message_tools]
    if message_tools:
        names = [tool["function"]["name"] for tool in available]
        if len(set(names)) != len(names):
            raise invalid("tools", "tool names must be unique across request and message tools")
    if isinstance(tool_choice, str):
        if tool_choice not in _CHOICES:
            raise invalid("tool_choice", f"must be one of {', '.join(_CHOICES)} or an object, got {tool_choice!r}")
        if tool_choice == "required" and not available:
            raise invalid("tools", "cannot be empty when tool_choice is required")
        return tools if tools and tool_choice != "none" else None
    name = _named_choice(tool_choice)
    if not available:
        raise invalid("tools", "cannot be empty when tool_choice names a tool")
    if all(tool["function"]["name"] != name for tool in available):
        raise invalid("tool_choice.function.name", f"tool {name!r} is not in tools")
    return [tool for tool in tools if tool["function"]["name"] == name] or None


def _named_choice(raw: Any) -> str | None:
    choice = as_object(raw, "tool_choice")
    if choice.get("type", "function") != "function":
        raise invalid("tool_choice.type", "must be 'function'")
    function = as_object(choice.get("function"), "tool_choice.function")
    return as_optional_str(function.get("name"), "tool_choice.function.name")
