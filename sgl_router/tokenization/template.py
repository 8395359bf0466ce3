"""Chat templates: the Jinja environment the engine renders in, and what a template's text reveals about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sgl_router.tokenization.content_flow import OPAQUE, FlowError, follow_content
from sgl_router.tokenization.content_questions import Question
from sgl_router.tokenization.messages import ContentFormat

__all__ = ["ChatTemplate", "FollowedTemplate", "detect_content_format", "detect_low_effort_variable", "strftime_now"]


class _GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}`, which marks assistant text for training and changes no output.

    A call block on purpose: names set inside stay inside, as they do in transformers.
    """

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it as a plain class attribute)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Unlike jinja2's own filter: no HTML escaping, and keys stay in their order.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


_DICT_ATTRIBUTES = frozenset(dir(dict))


class _Environment(ImmutableSandboxedEnvironment):
    """Looks a plain object's key up at once where jinja2 would first find that there is no such attribute."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is dict and attribute not in _DICT_ATTRIBUTES:
            try:
                return obj[attribute]
            except KeyError:
                return self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)


def _environment() -> ImmutableSandboxedEnvironment:
    """transformers' chat environment as of the version the engine pins.

    Built here rather than taken from the installed transformers: newer ones rewrite messages before rendering
    (they add a `thinking` alias of `reasoning_content`), which the engine's does not.
    """
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment


class ChatTemplate:
    """A compiled chat template; rendering is thread-safe. Raises jinja2.TemplateSyntaxError for a broken source."""

    __slots__ = ("_environment", "_template", "source", "special_tokens")

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        self.source = source
        self.special_tokens = special_tokens
        self._environment = _environment()
        self._template = self._environment.from_string(source)

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None,
        documents: list[dict[str, Any]] | None,
        add_generation_prompt: bool,
        variables: dict[str, Any],
    ) -> str:
        return _rendered(
            self._template,
            {
                **self.special_tokens,
                **variables,
                "messages": messages,
                "tools": tools,
                "documents": documents,
                "add_generation_prompt": add_generation_prompt,
            },
        )

    def followed(self, strftime_now: Callable[[str], str]) -> FollowedTemplate:
        """This template as `content_flow` leaves it, asking the given clock. Raises FlowError."""
        tree, questions = follow_content(self._environment, self.source)
        environment = self._environment
        code = environment.compile(tree)
        names = environment.make_globals({OPAQUE: _opaque, "strftime_now": strftime_now})
        return FollowedTemplate(jinja2.Template.from_code(environment, code, names), questions, self.special_tokens)


class FollowedTemplate(NamedTuple):
    """Renders as the template does, or raises where the outcome depends on contents beyond showing them."""

    template: jinja2.Template
    questions: tuple[Question, ...]
    special_tokens: dict[str, str]

    def render(self, messages: list[dict[str, Any]], variables: dict[str, Any]) -> str:
        return _rendered(self.template, {**self.special_tokens, **variables, "messages": messages})


def _rendered(template: jinja2.Template, variables: dict[str, Any]) -> str:
    # Without Template.render's rewriting of tracebacks: a failing template is an answer here, not a bug to look into.
    return "".join(template.root_render_func(template.new_context(variables)))


def _opaque() -> None:
    raise FlowError("a content is looked into")


_MEDIA_WORDS = ("image", "audio", "video", "vision")
_MESSAGE_NAMES = frozenset({"message", "msg", "m"})


def detect_content_format(source: str) -> ContentFormat:
    """Whether the engine hands this template lists of parts: it mentions media, or loops over a message's content."""
    if any(word in source for word in _MEDIA_WORDS):
        return ContentFormat.OPENAI
    try:
        tree = _environment().parse(source)
    except jinja2.TemplateError:
        return ContentFormat.STRING
    loops_over_content = any(_is_message_content(loop.iter) for loop in tree.find_all(nodes.For))
    return ContentFormat.OPENAI if loops_over_content else ContentFormat.STRING


def _is_message_content(node: nodes.Node | None) -> bool:
    """`message.content` or `message['content']`, under any filters, tests and slices."""
    while True:
        if isinstance(node, (nodes.Filter, nodes.Test)) or (
            isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
        ):
            node = node.node
        else:
            break
    if isinstance(node, nodes.Getitem):
        key = node.arg.value if isinstance(node.arg, nodes.Const) else None
    elif isinstance(node, nodes.Getattr):
        key = node.attr
    else:
        return False
    owner = node.node
    return key == "content" and isinstance(owner, nodes.Name) and owner.ctx == "load" and owner.name in _MESSAGE_NAMES


def detect_low_effort_variable(source: str) -> str | None:
    """The switch that the engine sets for `reasoning_effort: low` (Nemotron 3 templates have one).

    The engine takes the first rule that matches a template; the texts excluded here belong to earlier rules.
    """
    if "low_effort" not in source or "truncate_history_thinking" not in source:
        return None
    return None if "<|channel|>" in source or "[THINK]" in source else "low_effort"
