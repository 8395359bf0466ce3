"""What a chat's response must look like: a call of one of its tools, or a document of a schema."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from sgl_router.lab.mock_worker.minimal_instance import Unsatisfiable, minimal_instance
from sgl_router.lab.mock_worker.refusal import Refusal, invalid

__all__ = ["OutputFormat", "output_format"]


@dataclass(frozen=True)
class OutputFormat:
    """The text the mock model is bound to say. `call`: the function whose arguments the text is, if it is that."""

    text: str
    call: str | None = None

    @staticmethod
    def call_id() -> str:
        """A new id for a call, as the engine makes them."""
        return f"call_{uuid.uuid4().hex[:24]}"


def output_format(body: Mapping[str, Any]) -> OutputFormat | None:
    """What `tools` with `tool_choice`, or else `response_format`, ask of a chat; None for free text.

    `tool_choice: auto` (the default) is free text: whether a model calls a tool is its own choice, and the mock's is
    not to. Raises Refusal.
    """
    function = _chosen_function(body)
    if function is not None:
        return OutputFormat(_document(function.get("parameters") or {"type": "object"}, "tools"), function["name"])
    wanted = body.get("response_format")
    if wanted is None:
        return None
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return OutputFormat("{}")
    if kind == "json_schema":
        holder = wanted.get("json_schema")
        schema = holder.get("schema") if isinstance(holder, Mapping) else None
        if not isinstance(schema, Mapping):
            raise invalid("'response_format.json_schema.schema' must be a JSON schema")
        return OutputFormat(_document(schema, "response_format"))
    raise invalid("'response_format.type' must be 'text', 'json_object' or 'json_schema'")


def _chosen_function(body: Mapping[str, Any]) -> dict[str, Any] | None:
    tools, choice = body.get("tools"), body.get("tool_choice")
    if choice is None or choice in ("auto", "none"):
        return None
    if not isinstance(tools, list) or not tools:
        raise invalid("Tools cannot be empty if tool choice is set to required or to a function")
    functions = [tool.get("function") if isinstance(tool, Mapping) else None for tool in tools]
    named = [item for item in functions if isinstance(item, dict) and isinstance(item.get("name"), str)]
    if len(named) != len(functions):
        raise invalid("each of 'tools' must have a 'function' with a 'name'")
    if choice == "required":
        return named[0]
    wanted = choice.get("function") if isinstance(choice, Mapping) else None
    name = wanted.get("name") if isinstance(wanted, Mapping) else None
    for function in named:
        if function["name"] == name:
            return function
    raise invalid("'tool_choice' must be 'none', 'auto', 'required' or name one of 'tools'")


def _document(schema: Any, field: str) -> str:
    try:
        return msgspec.json.encode(minimal_instance(schema)).decode()
    except Unsatisfiable as error:
        raise Refusal(f"'{field}': the schema cannot be compiled: {error}") from error
