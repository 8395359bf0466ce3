"""Where a chat template lets the text of a message go: what its rendering shows without depending on it.

A template is followed with types in place of values. Uses of a message's content that only copy it into the output
stay; a few comparisons are collected as questions about the content; any other use is replaced by a call that raises.
Rendering the result with placeholders for contents therefore either raises, or takes the way that any contents
answering the questions alike would take, and shows where each of them lands.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Any

from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sgl_router.tokenization.content_questions import Question

__all__ = ["OPAQUE", "FlowError", "follow_content"]

# The name that stands for every use of a content that is more than copying it.
OPAQUE = "__opaque__"


class FlowError(Exception):
    """The template has something that is not followed."""


class _Kind(Enum):
    """What an expression may evaluate to, besides values that hold no content."""

    CLEAN = "clean"
    CONTENT = "content"
    # Text made of contents by joining and trimming: it may only be joined further, or shown.
    TEXT = "text"
    MESSAGE = "message"
    MESSAGES = "messages"
    LOOP = "loop"
    NAMESPACE = "namespace"
    MACRO = "macro"


_COPIED = frozenset({_Kind.CLEAN, _Kind.CONTENT, _Kind.TEXT})
_ASKED_FOR_TRUTH = frozenset(_Kind) - {_Kind.TEXT}
# Tests that look at a value's type alone, or at whether there is one.
_TYPE_TESTS = frozenset(
    {"boolean", "callable", "defined", "float", "integer", "iterable", "mapping", "none", "number", "sequence"}
    | {"string", "undefined"}
)
_DICT_ATTRIBUTES = frozenset(dir(dict))
_TRIMS = frozenset({"strip", "lstrip", "rstrip"})
# Names whose values are random, keep state, or would hide where a content went.
_REFUSED_NAMES = frozenset({"lipsum", "caller", "self", "cycler", "joiner", "namespace", OPAQUE})
# `random`, and what makes markup: text joined to markup is escaped.
_REFUSED_FILTERS = frozenset({"e", "escape", "forceescape", "random", "safe", "urlize", "xmlattr"})


def follow_content(
    environment: ImmutableSandboxedEnvironment, source: str
) -> tuple[nodes.Template, tuple[Question, ...]]:
    """The template with every other use of a content replaced, and the questions left in it. Raises FlowError."""
    kinds: dict[str, _Kind] = {"messages": _Kind.MESSAGES, "loop": _Kind.LOOP}
    while True:
        flow = _Flow(environment, dict(kinds))
        tree = environment.parse(source)
        flow.statements(tree.body)
        if flow.kinds == kinds:
            return tree, tuple(dict.fromkeys(flow.questions))
        kinds = flow.kinds


class _Flow:
    """One pass over a tree, rewriting it; `kinds` of names are joined over every assignment, whatever its scope."""

    def __init__(self, environment: ImmutableSandboxedEnvironment, kinds: dict[str, _Kind]) -> None:
        self._environment = environment
        self.kinds = kinds
        self.questions: list[Question] = []

    # -- statements

    def statements(self, body: Iterable[nodes.Node]) -> None:
        for node in body:
            self._statement(node)

    def _statement(self, node: nodes.Node) -> None:
        if isinstance(node, nodes.Output):
            node.nodes = [self._wanted(item, _COPIED) for item in node.nodes]
        elif isinstance(node, nodes.If):
            node.test = self._condition(node.test)
            self.statements(node.body)
            self.statements(node.elif_)
            self.statements(node.else_)
        elif isinstance(node, nodes.For):
            self._loop(node)
        elif isinstance(node, nodes.Assign):
            node.node = self._assigned(node.target, node.node)
        elif isinstance(node, nodes.AssignBlock):
            if node.filter is not None or not isinstance(node.target, nodes.Name):
                raise FlowError("a filtered block assignment")
            self.statements(node.body)
            self._join(node.target.name, _Kind.TEXT)
        elif isinstance(node, nodes.Macro):
            self._join(node.name, _Kind.MACRO)
            node.defaults = [self._wanted(item, {_Kind.CLEAN}) for item in node.defaults]
            for argument in node.args:
                self._join(argument.name, _Kind.CLEAN)
            self.statements(node.body)
        elif isinstance(node, nodes.CallBlock) and isinstance(node.call.node, nodes.ExtensionAttribute):
            self.statements(node.body)
        elif not isinstance(node, (nodes.Continue, nodes.Break)):
            raise FlowError(type(node).__name__)

    def _loop(self, node: nodes.For) -> None:
        if node.recursive:
            raise FlowError("a recursive loop")
        node.iter, kind = self._visit(node.iter)
        if kind is _Kind.MESSAGES and isinstance(node.target, nodes.Name):
            self._join(node.target.name, _Kind.MESSAGE)
        else:
            if kind is not _Kind.CLEAN:
                node.iter = self._opaque(node.iter)
            for name in node.target.find_all(nodes.Name) if not isinstance(node.target, nodes.Name) else (node.target,):
                self._join(name.name, _Kind.CLEAN)
        if node.test is not None:
            node.test = self._condition(node.test)
        self.statements(node.body)
        self.statements(node.else_)

    def _assigned(self, target: nodes.Node, value: Any) -> nodes.Expr:
        value, kind = self._visit(value)
        if kind is _Kind.LOOP:
            value, kind = self._opaque(value), _Kind.CLEAN
        if isinstance(target, nodes.Name):
            self._join(target.name, kind)
        elif isinstance(target, nodes.NSRef):
            self._join(f".{target.attr}", kind)
        else:
            if kind is not _Kind.CLEAN:
                value = self._opaque(value)
            for name in target.find_all(nodes.Name):
                self._join(name.name, _Kind.CLEAN)
        return value  # type: ignore[no-any-return]

    def _join(self, name: str, kind: _Kind) -> None:
        self.kinds[name] = _joined(self.kinds.get(name, _Kind.CLEAN), kind)

    # -- expressions: each returns what takes the expression's place

    def _wanted(self, node: nodes.Expr, kinds: Iterable[_Kind]) -> nodes.Expr:
        node, kind = self._visit(node)
        return node if kind in kinds else self._opaque(node)

    def _condition(self, node: Any) -> nodes.Expr:
        """Only truth is asked of the value; whether a content is empty is known wherever the outcome is used."""
        if isinstance(node, (nodes.And, nodes.Or)):
            node.left, node.right = self._condition(node.left), self._condition(node.right)
            return node
        return self._wanted(node, _ASKED_FOR_TRUTH)

    def _opaque(self, node: nodes.Expr) -> nodes.Expr:
        call = nodes.Call(nodes.Name(OPAQUE, "load"), [], [], None, None)
        call.set_lineno(node.lineno, override=True)
        call.set_environment(self._environment)
        return call

    def _visit(self, node: Any) -> tuple[nodes.Expr, _Kind]:
        kind = self._kind(node)
        return (self._opaque(node), _Kind.CLEAN) if kind is None else (node, kind)

    def _kind(self, node: nodes.Expr) -> _Kind | None:
        """The kind of an expression whose parts are rewritten on the way; None if it is to be replaced."""
        if isinstance(node, nodes.Name):
            return None if node.name in _REFUSED_NAMES else self.kinds.get(node.name, _Kind.CLEAN)
        if isinstance(node, (nodes.Const, nodes.TemplateData)):
            return _Kind.CLEAN
        if isinstance(node, nodes.Getattr):
            return self._member(node, node.attr)
        if isinstance(node, nodes.Getitem):
            return self._item(node)
        if isinstance(node, (nodes.And, nodes.Or)):
            return self._either(node)
        if isinstance(node, nodes.Not):
            node.node = self._condition(node.node)
            return _Kind.CLEAN
        if isinstance(node, nodes.CondExpr):
            return self._conditional(node)
        if isinstance(node, (nodes.Add, nodes.Concat)):
            return self._concatenation(node)
        if isinstance(node, nodes.Compare):
            return self._comparison(node)
        if isinstance(node, nodes.Test):
            return self._test(node)
        if isinstance(node, nodes.Filter):
            return self._filter(node)
        if isinstance(node, nodes.Call):
            return self._call(node)
        if isinstance(node, (nodes.BinExpr, nodes.UnaryExpr, nodes.List, nodes.Tuple, nodes.Dict, nodes.Pair)):
            return self._plain(node)
        if isinstance(node, (nodes.Keyword, nodes.Slice)):
            return self._plain(node)
        raise FlowError(type(node).__name__)

    def _plain(self, node: nodes.Node) -> _Kind:
        """An operation on values that hold no content, which its operands must be."""
        for field, value in node.iter_fields(exclude=("ctx", "op")):
            if isinstance(value, nodes.Node):
                setattr(node, field, self._clean(value))
            elif isinstance(value, list):
                value[:] = [self._clean(item) if isinstance(item, nodes.Node) else item for item in value]
        return _Kind.CLEAN

    def _clean(self, node: Any) -> Any:
        if isinstance(node, (nodes.Keyword, nodes.Pair, nodes.Operand)):
            self._plain(node)
            return node
        return self._wanted(node, {_Kind.CLEAN})

    def _member(self, node: nodes.Getattr | nodes.Getitem, name: str) -> _Kind | None:
        node.node, owner = self._visit(node.node)
        if owner is _Kind.CLEAN:
            return self.kinds.get(f".{name}", _Kind.CLEAN)
        if owner is _Kind.MESSAGE and name not in _DICT_ATTRIBUTES:
            return _Kind.CONTENT if name == "content" else _Kind.CLEAN
        if owner is _Kind.LOOP and isinstance(node, nodes.Getattr):
            return _Kind.MESSAGE if name in ("previtem", "nextitem") else _Kind.CLEAN
        if owner is _Kind.NAMESPACE and isinstance(node, nodes.Getattr):
            return self.kinds.get(f".{name}", _Kind.CLEAN)
        return None

    def _item(self, node: nodes.Getitem) -> _Kind | None:
        if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
            return self._member(node, node.arg.value)
        node.node, owner = self._visit(node.node)
        node.arg = self._clean(node.arg) if not isinstance(node.arg, nodes.Slice) else node.arg
        if isinstance(node.arg, nodes.Slice):
            self._plain(node.arg)
            if owner is _Kind.MESSAGES:
                return _Kind.MESSAGES
        elif owner is _Kind.MESSAGES:
            return _Kind.MESSAGE
        return _Kind.CLEAN if owner is _Kind.CLEAN else None

    def _either(self, node: nodes.And | nodes.Or) -> _Kind | None:
        node.left, left = self._visit(node.left)
        node.right, right = self._visit(node.right)
        if left is _Kind.TEXT:
            return None
        return _joined(left, right)

    def _conditional(self, node: nodes.CondExpr) -> _Kind | None:
        node.test = self._condition(node.test)
        node.expr1, first = self._visit(node.expr1)
        second = _Kind.CLEAN
        if node.expr2 is not None:
            node.expr2, second = self._visit(node.expr2)
        return _joined(first, second)

    def _concatenation(self, node: nodes.Add | nodes.Concat) -> _Kind | None:
        if isinstance(node, nodes.Concat):
            visited = [self._visit(item) for item in node.nodes]
            node.nodes = [item for item, _ in visited]
            kinds = {kind for _, kind in visited}
        else:
            node.left, left = self._visit(node.left)
            node.right, right = self._visit(node.right)
            kinds = {left, right}
        if kinds == {_Kind.CLEAN}:
            return _Kind.CLEAN
        return _Kind.TEXT if kinds <= _COPIED else None

    def _comparison(self, node: nodes.Compare) -> _Kind | None:
        node.expr, left = self._visit(node.expr)
        constant = node.expr.value if isinstance(node.expr, nodes.Const) else None
        rights = []
        for operand in node.ops:
            operand.expr, right = self._visit(operand.expr)
            rights.append(right)
        if len(node.ops) == 1:
            [operand], [right] = node.ops, rights
            if operand.op in ("in", "notin") and left is _Kind.CLEAN:
                if right is _Kind.MESSAGE:
                    return _Kind.CLEAN
                if right is _Kind.CONTENT and isinstance(constant, str):
                    return self._ask("in", constant)
            if operand.op in ("eq", "ne") and left is _Kind.CONTENT and isinstance(operand.expr, nodes.Const):
                known = operand.expr.value
                return self._ask("eq", known) if isinstance(known, str) else _Kind.CLEAN
        return _Kind.CLEAN if {left, *rights} == {_Kind.CLEAN} else None

    def _ask(self, kind: str, text: str) -> _Kind:
        self.questions.append(Question(kind, text))
        return _Kind.CLEAN

    def _arguments(self, node: nodes.Test | nodes.Filter | nodes.Call) -> None:
        if node.dyn_args is not None or node.dyn_kwargs is not None:
            raise FlowError("unpacked arguments")
        node.args = [self._clean(item) for item in node.args]
        node.kwargs = [self._clean(item) for item in node.kwargs]

    def _test(self, node: nodes.Test) -> _Kind | None:
        node.node, kind = self._visit(node.node)
        self._arguments(node)
        return _Kind.CLEAN if kind is _Kind.CLEAN or node.name in _TYPE_TESTS else None

    def _filter(self, node: nodes.Filter) -> _Kind | None:
        if node.node is None or node.name in _REFUSED_FILTERS or (node.name == "map" and node.args):
            raise FlowError(f"filter {node.name}")
        node.node, kind = self._visit(node.node)
        self._arguments(node)
        bare = not node.args and not node.kwargs
        if kind is _Kind.CLEAN:
            return _Kind.CLEAN
        if kind is _Kind.CONTENT and bare and node.name in ("trim", "string"):
            return _Kind.TEXT if node.name == "trim" else _Kind.CONTENT
        if kind is _Kind.CONTENT and node.name in ("default", "d") and len(node.args) <= 1 and not node.kwargs:
            return _Kind.CONTENT
        if kind is _Kind.MESSAGES and bare:
            if node.name in ("length", "count"):
                return _Kind.CLEAN
            if node.name in ("first", "last"):
                return _Kind.MESSAGE
            if node.name == "list":
                return _Kind.MESSAGES
        if kind is _Kind.MESSAGES and node.name in ("selectattr", "rejectattr") and not node.kwargs and node.args:
            named = node.args[0]
            path = named.value if isinstance(named, nodes.Const) else None
            if isinstance(path, str) and path.isidentifier() and path not in _DICT_ATTRIBUTES | {"content"}:
                return _Kind.MESSAGES
        return None

    def _call(self, node: nodes.Call) -> _Kind | None:
        callee = node.node
        if isinstance(callee, nodes.Name) and callee.name == "namespace":
            for keyword in node.kwargs:
                keyword.value = self._assigned(nodes.NSRef("", keyword.key), keyword.value)
            if node.args or node.dyn_args is not None or node.dyn_kwargs is not None:
                raise FlowError("a namespace made from unnamed arguments")
            return _Kind.NAMESPACE
        if isinstance(callee, nodes.Getattr):
            callee.node, owner = self._visit(callee.node)
            if owner is not _Kind.CLEAN:
                return self._method(node, owner, callee.attr)
        else:
            node.node, kind = self._visit(callee)
            if kind is _Kind.MACRO:
                self._arguments(node)
                return _Kind.TEXT
            if kind is not _Kind.CLEAN:
                return None
        self._arguments(node)
        return _Kind.CLEAN

    def _method(self, node: nodes.Call, owner: _Kind, name: str) -> _Kind | None:
        self._arguments(node)
        constants = [item.value if isinstance(item, nodes.Const) else None for item in node.args]
        if node.kwargs:
            return None
        if owner is _Kind.CONTENT and not constants and name in _TRIMS:
            return _Kind.TEXT
        if owner is _Kind.CONTENT and name in ("startswith", "endswith") and len(constants) == 1:
            return self._ask(name, constants[0]) if isinstance(constants[0], str) else None
        if owner is _Kind.MESSAGE and name == "get" and constants and isinstance(constants[0], str):
            return _Kind.CONTENT if constants[0] == "content" else _Kind.CLEAN
        return _Kind.CLEAN if owner is _Kind.LOOP and name in ("cycle", "changed") else None


def _joined(one: _Kind, other: _Kind) -> _Kind:
    """A kind whose permitted uses are right for values of both."""
    if one is other or other is _Kind.CLEAN:
        return one
    if one is _Kind.CLEAN:
        return other
    if {one, other} == {_Kind.CONTENT, _Kind.TEXT}:
        return _Kind.TEXT
    raise FlowError(f"a value that may be {one.value} or {other.value}")
