"""Chat messages as the engine normalises them before its template sees them.

The engine validates messages into pydantic models, dumps them, and drops keys that are None, so a template meets
known keys in a known order: `role, content, tool_call_id, name, phase, reasoning_content, tool_calls, tools, prefix`
(user messages: `role, content` only). Whatever would not validate there is refused here.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Any, NamedTuple

import msgspec

from sgl_router.tokenization.errors import Unrenderable, UnrenderableReason, invalid
from sgl_router.tokenization.fields import as_bool, as_int, as_object, as_optional_str, as_the_engine_parses, type_name
from sgl_router.tokenization.tools import dump_tools

__all__ = ["ContentFormat", "NormalizedMessages", "declares_message_tools", "normalize_messages", "plain_messages"]


class ContentFormat(str, Enum):
    """How a template wants list content: as a list of parts, or as one string."""

    STRING = "string"
    OPENAI = "openai"


class NormalizedMessages(NamedTuple):
    messages: list[dict[str, Any]]
    # Tools that root, system and developer messages declare: the request can call them too.
    tools: list[dict[str, Any]]


_GENERIC_ROLES = ("system", "assistant", "tool", "function", "developer", "latest_reminder", "root")
_ROLES_DECLARING_TOOLS = frozenset({"root", "system", "developer"})
_PLAIN_ROLES = {role: role for role in ("user", *_GENERIC_ROLES)}
_PHASES = ("commentary", "final_answer")
_LONG_NUMBER = re.compile(r"[0-9]{19}")
_MEDIA_PARTS = frozenset({"image_url", "video_url", "audio_url", "input_audio"})


def declares_message_tools(messages: Any) -> bool:
    """Whether a system-like message carries tools, judged before validation as the engine does."""
    return isinstance(messages, list) and any(
        isinstance(message, dict)
        and isinstance(message.get("role"), str)
        and message["role"].lower() in _ROLES_DECLARING_TOOLS
        and bool(message.get("tools"))
        for message in messages
    )


def normalize_messages(
    raw: Any, content_format: ContentFormat, *, tools_dumped_twice: bool = False
) -> NormalizedMessages:
    """The messages a template is given. Raises Unrenderable for media and for what the engine would refuse."""
    if not isinstance(raw, list):
        raise invalid("messages", f"must be an array, got {type_name(raw)}")
    if not raw:
        raise invalid("messages", "cannot be empty")
    plain = plain_messages(raw)
    if plain is not None:
        roles, contents = plain
        return NormalizedMessages(
            [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)], []
        )
    messages = [_message(message, f"messages[{i}]", content_format) for i, message in enumerate(raw)]
    callable_tools: list[dict[str, Any]] = []
    for i, message in enumerate(messages):
        if "tools" in message:
            declares = message["role"] in _ROLES_DECLARING_TOOLS
            path = f"messages[{i}].tools"
            raw_tools = as_the_engine_parses(message["tools"], path)
            tools = dump_tools(raw_tools, path, normalize=declares, twice=tools_dumped_twice)
            message["tools"] = tools
            if declares:
                callable_tools.extend(tools)
    return NormalizedMessages(messages, callable_tools)


def plain_messages(raw: list[Any]) -> tuple[list[str], list[str]] | None:
    """Roles and contents, where every message has one of each and nothing that would show beside; None otherwise."""
    roles, contents = [], []
    try:
        for message in raw:
            role = _PLAIN_ROLES[message["role"]]
            content = message["content"]
            if type(content) is not str or (len(message) != 2 and role != "user"):
                return None
            roles.append(role)
            contents.append(content)
    except (KeyError, TypeError, IndexError):
        return None
    return roles, contents


def _message(raw: Any, path: str, content_format: ContentFormat) -> dict[str, Any]:
    message = as_object(raw, path)
    role = message.get("role")
    if not isinstance(role, str):
        raise invalid(f"{path}.role", f"must be a string, got {type_name(role)}")
    content = message.get("content")
    if role == "user":
        if isinstance(content, str):
            return {"role": role, "content": content}
        if content is None:
            raise invalid(f"{path}.content", "must be a string or an array of parts, got null")
        return {"role": role, "content": _content(content, f"{path}.content", role, content_format)}
    role = role.lower()
    if role not in _GENERIC_ROLES:
        raise invalid(f"{path}.role", f"must be user or one of {', '.join(_GENERIC_ROLES)}, got {role!r}")
    shown = "" if content is None else _content(content, f"{path}.content", role, content_format)
    normal: dict[str, Any] = {"role": role, "content": shown}
    _optional_keys(message, path, role, normal)
    if isinstance(content, list) and content_format is ContentFormat.OPENAI:
        # The engine rebuilds such a message, which moves the key to the end.
        normal["content"] = normal.pop("content")
    return normal


def _optional_keys(message: dict[str, Any], path: str, role: str, normal: dict[str, Any]) -> None:
    """The keys of a non-user message beside role and content, in the engine's order, None left out."""
    for key in ("tool_call_id", "name"):
        value = as_optional_str(message.get(key), f"{path}.{key}")
        if value is not None:
            normal[key] = value
    phase = message.get("phase")
    if phase is not None:
        if phase not in _PHASES:
            raise invalid(f"{path}.phase", f"must be one of {', '.join(_PHASES)}")
        normal["phase"] = phase
    reasoning = as_optional_str(message.get("reasoning_content"), f"{path}.reasoning_content")
    if reasoning is not None:
        normal["reasoning_content"] = reasoning
    calls = message.get("tool_calls")
    if calls is not None:
        normal["tool_calls"] = _tool_calls(calls, f"{path}.tool_calls", parse=role == "assistant")
    tools = message.get("tools")
    if tools is not None:
        normal["tools"] = tools
    prefix = message.get("prefix")
    if prefix is not None:
        normal["prefix"] = as_bool(prefix, f"{path}.prefix")


def _content(raw: Any, path: str, role: str, content_format: ContentFormat) -> str | list[dict[str, Any]]:
    """List content: text parts joined with a space, or the parts an "openai" template understands."""
    if isinstance(raw, str):
        return raw
    if not isinstance(raw, list):
        raise invalid(path, f"must be a string or an array of parts, got {type_name(raw)}")
    seen = (_part(part, f"{path}[{i}]", role) for i, part in enumerate(raw))
    parts = [part for part in seen if part is not None]
    texts = [part["text"] for part in parts if part["type"] == "text"]
    if content_format is ContentFormat.STRING:
        return " ".join(texts)
    # Tool results made of text alone are flattened even for templates that take parts.
    if role == "tool" and len(texts) == len(parts):
        return " ".join(texts)
    return parts


def _part(raw: Any, path: str, role: str) -> dict[str, Any] | None:
    """A content part as a template sees it; None for those the engine validates and then leaves out."""
    part = as_object(raw, path)
    kind = part.get("type")
    if kind == "text":
        text = part.get("text")
        if not isinstance(text, str):
            raise invalid(f"{path}.text", f"must be a string, got {type_name(text)}")
        return {"type": "text", "text": text}
    if isinstance(kind, str) and kind in _MEDIA_PARTS:
        raise Unrenderable(
            UnrenderableReason.MEDIA, f"{path}: a {kind} part expands to tokens only the engine knows", path
        )
    if kind in ("thinking", "reasoning"):
        thinking = as_optional_str(part.get("thinking"), f"{path}.thinking")
        text = as_optional_str(part.get("text"), f"{path}.text")
        if (thinking is None) == (text is None):
            raise invalid(path, "thinking parts need exactly one of 'thinking' and 'text'")
        if role != "assistant":
            raise invalid(path, "thinking parts are allowed in assistant messages only")
        return None
    if kind == "tool_reference":
        name = part.get("name")
        if not isinstance(name, str):
            raise invalid(f"{path}.name", f"must be a string, got {type_name(name)}")
        return {"type": "tool_reference", "name": name}
    raise invalid(f"{path}.type", f"unknown content part type {kind!r}")


def _tool_calls(raw: Any, path: str, *, parse: bool) -> list[dict[str, Any]]:
    if not isinstance(raw, list):
        raise invalid(path, f"must be an array, got {type_name(raw)}")
    return [_tool_call(call, f"{path}[{i}]", parse) for i, call in enumerate(raw)]


def _tool_call(raw: Any, path: str, parse: bool) -> dict[str, Any]:
    """One call of an assistant's history: nulls are kept, arguments become an object where `parse` is set."""
    call = as_object(raw, path)
    if call.get("type", "function") != "function":
        raise invalid(f"{path}.type", "must be 'function'")
    index = call.get("index")
    function = as_object(call.get("function"), f"{path}.function")
    arguments = function.get("arguments")
    arguments_path = f"{path}.function.arguments"
    if isinstance(arguments, str):
        if parse:
            arguments = _parse_arguments(arguments, arguments_path)
    elif arguments is not None:
        arguments = as_the_engine_parses(as_object(arguments, arguments_path), arguments_path)
    return {
        "id": as_optional_str(call.get("id"), f"{path}.id"),
        "index": None if index is None else as_int(index, f"{path}.index"),
        "type": "function",
        "function": {
            "name": as_optional_str(function.get("name"), f"{path}.function.name"),
            "arguments": arguments,
        },
    }


def _parse_arguments(text: str, path: str) -> dict[str, Any]:
    try:
        arguments = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError):
        raise invalid(path, "must be valid JSON") from None
    if not isinstance(arguments, dict):
        raise invalid(path, f"must be a JSON object, got {type_name(arguments)}")
    if _LONG_NUMBER.search(text):
        return {key: as_the_engine_parses(value, path) for key, value in arguments.items()}
    return arguments
