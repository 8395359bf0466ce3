"""From a decoded chat body to what the template is called with: the engine's request rules in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sgl_router.tokenization.errors import Unrenderable, UnrenderableReason, invalid
from sgl_router.tokenization.fields import as_bool, as_the_engine_parses, type_name
from sgl_router.tokenization.messages import ContentFormat, declares_message_tools, normalize_messages
from sgl_router.tokenization.tools import choose_tools, dump_request_tools

__all__ = ["SHAPING_KEYS", "ChatCall", "Endpoint", "TemplateTraits", "parse_chat"]

# What the chat endpoint's prompt is made of, beside the messages.
SHAPING_KEYS = frozenset(
    {
        "chat_template_kwargs",
        "continue_final_message",
        "input_ids",
        "reasoning",
        "reasoning_effort",
        "tool_choice",
        "tools",
    }
)


class Endpoint(str, Enum):
    """The engine treats a few fields differently on its two chat-rendering endpoints."""

    CHAT = "chat"
    TOKENIZE = "tokenize"


@dataclass(frozen=True)
class TemplateTraits:
    """What the engine derives from a template's text and its own start-up flags."""

    content_format: ContentFormat
    # The template variable that `reasoning_effort: low` switches on, where the template has one.
    low_effort_variable: str | None = None
    # The server's --default-chat-template-kwargs.
    default_kwargs: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class ChatCall:
    """The arguments of one template rendering, and what is appended to its tokens."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    variables: dict[str, Any]
    documents: list[dict[str, Any]] | None
    add_generation_prompt: bool
    # Text of the final assistant message to continue, encoded on its own after the prompt.
    assistant_prefix: str | None
    # Whether the rendered text is to get the tokenizer's BOS/EOS (only /v1/tokenize can ask for it).
    add_special_tokens: bool


_EFFORTS = frozenset({"none", "minimal", "low", "medium", "high", "xhigh", "ultra", "max"})
_MAX_EFFORT = 0.99
# Keys of chat_template_kwargs that collide with arguments the engine itself passes to the template call.
_RESERVED = frozenset(
    {
        "add_generation_prompt",
        "conversation",
        "conversations",
        "messages",
        "return_dict",
        "self",
        "tokenize",
        "tools",
    }
)
# Arguments of the rendering call that do not change the text, and never become template variables.
_WITHOUT_EFFECT = frozenset({"max_length", "padding", "return_tensors", "tokenizer_kwargs", "truncation"})
# Arguments that are without effect while false and refuse the rendering otherwise.
_REFUSING = frozenset({"continue_final_message", "return_assistant_tokens_mask", "sanitize_control_tokens"})


def parse_chat(body: Mapping[str, Any], traits: TemplateTraits, endpoint: Endpoint = Endpoint.CHAT) -> ChatCall:
    """Normalise a chat body. Raises Unrenderable naming the field that is at fault."""
    twice = endpoint is Endpoint.TOKENIZE
    messages, message_tools = normalize_messages(body.get("messages"), traits.content_format, tools_dumped_twice=twice)
    raw_tools = body.get("tools")
    tools = [] if raw_tools is None else dump_request_tools(raw_tools, twice=twice)
    chosen = choose_tools(
        body.get("tool_choice"),
        tools,
        message_tools,
        declared=raw_tools is not None or declares_message_tools(body.get("messages")),
    )
    variables = _template_variables(body, traits, endpoint)
    documents = _split_call_arguments(variables)
    add_generation_prompt, add_special_tokens = True, False
    continues = as_bool(body.get("continue_final_message", False), "continue_final_message")
    as_given = False
    if endpoint is Endpoint.TOKENIZE and body.get("add_generation_prompt") is not None:
        add_generation_prompt = as_bool(body["add_generation_prompt"], "add_generation_prompt")
        add_special_tokens = as_bool(body.get("add_special_tokens", False), "add_special_tokens")
        if continues and not add_generation_prompt:
            raise invalid("continue_final_message", "needs add_generation_prompt to open the assistant turn")
        as_given = not continues
    prefix = None if as_given else _settle_last_assistant(messages, continues)
    if not messages:
        raise invalid("messages", "nothing is left once the final message is continued")
    return ChatCall(messages, chosen, variables, documents, add_generation_prompt, prefix, add_special_tokens)


def _settle_last_assistant(messages: list[dict[str, Any]], continues: bool) -> str | None:
    """Take the final assistant message off to be continued, or else turn it into a user message, as the engine does."""
    last = messages[-1]
    content = last["content"]
    if last["role"] != "assistant" or not isinstance(content, str):
        return None
    if continues:
        messages.pop()
        return content
    messages[-1] = {"role": "user", "content": content}
    return None


def _template_variables(body: Mapping[str, Any], traits: TemplateTraits, endpoint: Endpoint) -> dict[str, Any]:
    """`reasoning_effort`, `reasoning` and `chat_template_kwargs` folded into the template's variables."""
    effort, thinking = _reasoning(body)
    raw = body.get("chat_template_kwargs")
    if raw is not None and not isinstance(raw, dict) and (thinking is None or endpoint is Endpoint.TOKENIZE):
        raise invalid("chat_template_kwargs", f"must be an object, got {type_name(raw)}")
    kwargs: dict[str, Any] = as_the_engine_parses(raw, "chat_template_kwargs") if isinstance(raw, dict) else {}
    if "chat_template" in kwargs:
        raise invalid("chat_template_kwargs.chat_template", "templates from requests are not rendered here")
    if thinking is not None:
        kwargs.setdefault("thinking", thinking)
        kwargs.setdefault("enable_thinking", thinking)
    effort = _checked_effort(effort)
    if endpoint is Endpoint.CHAT:
        own = kwargs.pop("reasoning_effort", None)
        if own is not None:
            effort = own
    if traits.default_kwargs:
        kwargs = {**traits.default_kwargs, **kwargs}
        if effort is None:
            effort = kwargs.get("reasoning_effort")
    variables = kwargs if effort is None else {"reasoning_effort": effort, **kwargs}
    if traits.low_effort_variable is not None and effort == "low":
        variables.setdefault(traits.low_effort_variable, True)
    return variables


def _reasoning(body: Mapping[str, Any]) -> tuple[Any, bool | None]:
    """The requested effort (unchecked) and the thinking default it implies."""
    effort = body.get("reasoning_effort")
    thinking: bool | None = None
    reasoning = body.get("reasoning")
    if isinstance(reasoning, dict):
        asked = reasoning.get("effort")
        if asked is None:
            asked = reasoning.get("reasoning_effort")
        if asked is not None:
            is_tier = isinstance(asked, str) and asked in _EFFORTS
            effort = asked if is_tier else _effort_number(asked, "reasoning.effort")
        enabled = reasoning.get("enabled")
        if enabled is None:
            enabled = reasoning.get("enable", False)
        if isinstance(enabled, str):
            enabled = enabled.strip().lower() in ("1", "true", "yes", "y", "on")
        if enabled:
            thinking = True
    if effort is not None:
        thinking = effort != "none"
    return effort, thinking


def _checked_effort(effort: Any) -> Any:
    if effort is None or (isinstance(effort, str) and effort in _EFFORTS):
        return effort
    number = _effort_number(effort, "reasoning_effort")
    if not 0.0 <= number <= _MAX_EFFORT:
        raise invalid("reasoning_effort", f"must be one of {', '.join(sorted(_EFFORTS))} or within 0..{_MAX_EFFORT}")
    return number


def _effort_number(effort: Any, path: str) -> float:
    if isinstance(effort, (str, int, float)) and not isinstance(effort, bool):
        try:
            return float(effort)
        except (ValueError, OverflowError):
            pass
    raise invalid(path, f"must be one of {', '.join(sorted(_EFFORTS))} or a number")


def _split_call_arguments(variables: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Remove what the engine's template call takes as its own arguments; returns `documents` among them."""
    for key in variables.keys() & _RESERVED:
        raise _refused(key, "is set by the engine itself")
    for key in variables.keys() & _REFUSING:
        if variables.pop(key):
            raise _refused(key, "cannot be combined with the engine's own rendering")
    for key in variables.keys() & _WITHOUT_EFFECT:
        del variables[key]
    documents = variables.pop("documents", None)
    if documents is None:
        return None
    if not isinstance(documents, list) or not all(isinstance(item, dict) for item in documents):
        raise _refused("documents", "must be an array of objects")
    return documents


def _refused(key: str, problem: str) -> Unrenderable:
    path = f"chat_template_kwargs.{key}"
    return Unrenderable(UnrenderableReason.TEMPLATE_ERROR, f"{path}: {problem}", path)
