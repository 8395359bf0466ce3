"""Chat bodies to prompts: of a conversation met before, only what is new is rendered, encoded and hashed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from sgl_router.prompt import Prompt, SharedPrefix, TokenIds
from sgl_router.tokenization.chat_request import SHAPING_KEYS, ChatCall
from sgl_router.tokenization.conversation_cache import ConversationCache
from sgl_router.tokenization.errors import Unrenderable
from sgl_router.tokenization.messages import plain_messages
from sgl_router.tokenization.render_plan import Cut, RenderPlans

if TYPE_CHECKING:
    from sgl_router.tokenization.tokenizer import ModelTokenizer, RenderedPrompt

__all__ = ["ChatPrompts", "PromptCounts"]

# Joining and hashing known text takes 0.4 ns for each character; what has more than this is not looked up.
_MAX_CHARS = 2_000_000
_MAX_MESSAGES = 4_000


class PromptCounts(NamedTuple):
    """Since the start, but for `nodes` and `bytes`: those are of now. Prompts too short to be cut are not counted."""

    hits: int
    misses: int
    evictions: int
    tokens_reused: int
    nodes: int
    bytes: int
    max_bytes: int


class ChatPrompts:
    """For one event loop. Ids equal those made from scratch.

    What is kept of a prompt is all but its end, from the cut before the last message: a prompt that never comes
    again leaves nothing behind, and the next turn of one that does finds everything but its last message and answer.
    """

    def __init__(self, tokenizer: ModelTokenizer, cut: str | None, plans: RenderPlans, max_bytes: int) -> None:
        self._tokenizer = tokenizer
        # None where no token of this tokenizer is known to be safe to cut at: prompts are then encoded whole.
        self._cut = cut
        self._plans = plans
        self._cache = ConversationCache(max_bytes)
        # What a body without shaping keys is rendered with: the same for all.
        self._usual: dict[str, Any] | None = None
        try:
            call = tokenizer.parse({"messages": [{"role": "user", "content": "x"}]})
        except Unrenderable:
            call = None
        if call is not None:
            self._usual = _variables(call)

    def counts(self) -> PromptCounts:
        cache = self._cache
        return PromptCounts(
            cache.hits, cache.misses, cache.evictions, cache.tokens_reused, len(cache), cache.bytes, cache.max_bytes
        )

    async def prompt(self, body: Mapping[str, Any]) -> Prompt:
        """The prompt of a chat body. Raises Unrenderable."""
        tokenizer = self._tokenizer
        plain = self._plain(body)
        if plain is not None:
            cut = self._plans.render(None, *plain, self._usual or {})
            if cut is not None:
                return await self._encoded(cut, None)
        if tokenizer.is_large(body):
            rendered = await tokenizer.offload(lambda: tokenizer.render_large(body))
            return await self._whole(rendered)
        call = tokenizer.parse(body)
        if call is not None and plain is None:
            cut = self._planned(call)
            if cut is not None:
                return await self._encoded(cut, call.assistant_prefix)
        return await self._whole(tokenizer.render(body, call))

    def _plain(self, body: Mapping[str, Any]) -> tuple[list[str], list[str]] | None:
        """Roles and contents of a body with plain messages and nothing else that a template sees, None otherwise."""
        if self._usual is None or not SHAPING_KEYS.isdisjoint(body):
            return None
        messages = body.get("messages")
        if type(messages) is not list or not 0 < len(messages) <= _MAX_MESSAGES:
            return None
        plain = plain_messages(messages)
        if plain is None or sum(map(len, plain[1])) > min(_MAX_CHARS, self._tokenizer.most_chars):
            return None
        roles = plain[0]
        if roles[-1] == "assistant":
            roles[-1] = "user"
        return plain

    def _planned(self, call: ChatCall) -> Cut | None:
        roles, contents = [], []
        for message in call.messages:
            content = message["content"]
            if len(message) != 2 or not isinstance(content, str):
                return None
            roles.append(message["role"])
            contents.append(content)
        variables = _variables(call)
        try:
            key = msgspec.json.encode(variables)
        except (TypeError, ValueError, OverflowError, RecursionError, UnicodeError):
            return None
        return self._plans.render(key, roles, contents, variables)

    async def _whole(self, rendered: RenderedPrompt) -> Prompt:
        """A prompt whose text the template has rendered in full."""
        tokenizer = self._tokenizer
        if rendered.token_ids is not None:
            return Prompt(rendered.token_ids)
        text, cut = rendered.text, self._cut
        if len(text) > _MAX_CHARS:
            return Prompt(await tokenizer.offload(lambda: tokenizer.encode_rendered(rendered)))
        first, *others = [text] if cut is None else text.split(cut, _MAX_MESSAGES)
        pieces = [first, *[f"{cut}{part}" for part in others]]
        # The end is the last message and what opens the answer.
        return await self._encoded(Cut(pieces[:-2], "".join(pieces[-2:])), rendered.assistant_prefix)

    async def _encoded(self, cut: Cut, continued: str | None) -> Prompt:
        tokenizer = self._tokenizer
        walk = self._cache.walk(cut.head, cut.tail)
        if not walk.new and continued is None and len(walk.rest) <= tokenizer.inline_chars:
            encoded = [tokenizer.encode_rendered_text(walk.rest)]
        else:
            encoded = await self._encode([*walk.new, walk.rest], continued)
        shared: SharedPrefix | None = None
        if cut.head:
            shared = self._cache.keep(walk, [encoded[i].tobytes() for i in range(len(walk.new))])
        if not walk.path and len(encoded) == 1:
            return Prompt(encoded[0], shared)
        ids = b"".join([*[node.ids for node in walk.path], *[part.data for part in encoded]])
        return Prompt(np.frombuffer(ids, dtype=np.uint32), shared)

    async def _encode(self, texts: list[str], continued: str | None) -> list[TokenIds]:
        """The ids of each text, and of what is continued; off the loop where that may take long."""
        tokenizer = self._tokenizer

        def work() -> list[TokenIds]:
            parts = [tokenizer.encode_rendered_text(text) for text in texts]
            if continued:
                parts.append(tokenizer.encode_continued(continued))
            return parts

        return work() if tokenizer.is_short(texts, continued) else await tokenizer.offload(work)


def _variables(call: ChatCall) -> dict[str, Any]:
    return {
        **call.variables,
        "tools": call.tools,
        "documents": call.documents,
        "add_generation_prompt": call.add_generation_prompt,
    }
