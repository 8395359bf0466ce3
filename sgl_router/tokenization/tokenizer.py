"""One model's tokenizer: chat bodies and texts to the token ids its engine will see."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import structlog

from sgl_router.prompt import Prompt
from sgl_router.tokenization.body_size import exceeds
from sgl_router.tokenization.chat_request import ChatCall, Endpoint, TemplateTraits, parse_chat
from sgl_router.tokenization.client_ids import client_ids
from sgl_router.tokenization.cut_points import conversation_cut
from sgl_router.tokenization.encoders import Encoder, ReferenceEncoder, TokenIds, choose_encoder
from sgl_router.tokenization.errors import TokenizerLoadError, Unrenderable, UnrenderableReason, invalid
from sgl_router.tokenization.loading import TemplateSource, load_hf_tokenizer, load_template_source
from sgl_router.tokenization.messages import ContentFormat
from sgl_router.tokenization.model_files import ModelFacts, model_facts, uses_mistral_common

if TYPE_CHECKING:
    from sgl_router.tokenization.chat_prompts import ChatPrompts, PromptCounts
    from sgl_router.tokenization.template import ChatTemplate

__all__ = ["DEFAULT_CACHE_BYTES", "ModelTokenizer", "RenderedPrompt"]

log = structlog.get_logger(__name__)

T = TypeVar("T")

# Rendering stays on the event loop up to this much body (see body_size). A message is three nodes and up, and costs
# 0.8 us to normalise plus 0.3 (ChatML) to 10 us (tool calls, a long template) to render: 2 ms at the limit.
_INLINE_BODY_NODES = 600
_INLINE_BODY_CHARS = 64_000
_RENDERED_KEYS = ("messages", "tools", "chat_template_kwargs", "input_ids")
_THREADS = 2
DEFAULT_CACHE_BYTES = 64 << 20
# Beyond this a model_max_length is transformers' way to say that nobody set one.
_LARGEST_SENSIBLE_LENGTH = 1 << 32
# Embeddings are padded, and where no config.json tells how far, no id may be refused that an engine would take.
_PADDED_AT_MOST = 2
# A chat of more characters than this for each token of the context does not fit into it: no text is that dense.
_CHARS_PER_TOKEN = 16
_LEAST_CHARS = 1 << 20
_ANY_NUMBER = 1 << 62
_LONG_DECODE = 2_048
_DECODE_PROBE = "Hello , it 's 1 . a n't ! \u00e9 <unk>"

_PROBE = [{"role": "user", "content": "Hello there"}]


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt between rendering and encoding, where a conversation cache can sit.

    Its ids are those of `text`, followed by those of `assistant_prefix` encoded on its own.
    """

    text: str
    add_special_tokens: bool
    assistant_prefix: str | None = None
    # The client sent the prompt as ids: nothing is left to encode.
    token_ids: TokenIds | None = None


class ModelTokenizer:
    """Renders and encodes for one model. Safe to call from one event loop and from any thread."""

    def __init__(
        self,
        tokenizer: Any,
        encoder: Encoder,
        *,
        template: ChatTemplate | None,
        traits: TemplateTraits,
        facts: ModelFacts,
        broken_template: str | None = None,
        executor: Executor | None = None,
        conversation_cache_bytes: int = 0,
    ) -> None:
        self._tokenizer = tokenizer
        self._encoder = encoder
        self._template = template
        self._traits = traits
        self._facts = facts
        self._broken_template = broken_template
        self._executor = executor or ThreadPoolExecutor(_THREADS, thread_name_prefix="tokenize")
        # A tokenizer that adds specials to "" would add them to a rendered prompt that already has its own.
        self._adds_specials = len(encoder.encode("", True)) > 0
        # The engine hands a multimodal model's processor text instead of ids when its tokenizer adds specials, so
        # even a text-only chat is decoded and encoded again, and gains a second BOS.
        self._encodes_twice = facts.multimodal and self._adds_specials
        length = self.max_model_len
        self.most_chars = encoder.most_chars
        """Of a chat's contents: what has more is not rendered."""
        if length is not None:
            self.most_chars = min(self.most_chars, max(_LEAST_CHARS, _CHARS_PER_TOKEN * length))
        self._decodes_in_batches: bool | None = None
        self._bos_token_id: int | None = getattr(tokenizer, "bos_token_id", None)
        self._vocab_size: int | None = None
        self._prompts = self._chat_prompts(conversation_cache_bytes) if conversation_cache_bytes else None

    @classmethod
    def load(
        cls,
        tokenizer_path: str,
        chat_template: str | None = None,
        *,
        default_chat_template_kwargs: Mapping[str, Any] | None = None,
        conversation_cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> ModelTokenizer:
        """Load from a directory, a tokenizer.json or a hub id: seconds of blocking work. Raises TokenizerLoadError.

        `chat_template` and `default_chat_template_kwargs` are what the workers were started with. With
        `conversation_cache_bytes` of 0, `prompt` makes every prompt from scratch.
        """
        from sgl_router.tokenization.template import detect_content_format, detect_low_effort_variable

        tokenizer, files = load_hf_tokenizer(tokenizer_path)
        config = files.read_json("config.json")
        has_own = getattr(tokenizer, "chat_template", None) is not None
        mistral_common = uses_mistral_common(files, config)
        facts = model_facts(
            files.name,
            config,
            own_template=has_own,
            given_template=chat_template is not None,
            mistral_common=mistral_common and files.find("tokenizer.json") is None,
        )
        source = load_template_source(chat_template, tokenizer, files, multimodal=facts.multimodal)
        template, broken = _compile(source, tokenizer)
        traits = TemplateTraits(
            content_format=ContentFormat.STRING if source is None else detect_content_format(source.probe),
            low_effort_variable=None if source is None else detect_low_effort_variable(source.text),
            default_kwargs=default_chat_template_kwargs,
        )
        encoder = choose_encoder(tokenizer, _probe_texts(template))
        loaded = cls(
            tokenizer,
            encoder,
            template=template,
            traits=traits,
            facts=facts,
            broken_template=broken,
            conversation_cache_bytes=conversation_cache_bytes,
        )
        log.info(
            "tokenizer loaded",
            path=tokenizer_path,
            backend=encoder.backend,
            content_format=traits.content_format.value if template is not None else None,
            code_encoder=facts.code_encoder,
            max_model_len=loaded.max_model_len,
        )
        try:
            loaded._usable_template()
        except Unrenderable as error:
            log.warning(
                "chats of this model are routed without their tokens", reason=error.reason.value, why=error.message
            )
        else:
            if mistral_common:
                log.warning(
                    "the engine renders this model's chats with mistral_common, whatever the chat template: where its"
                    " tokens are others, they are not found",
                    path=tokenizer_path,
                )
        return loaded

    @property
    def backend(self) -> str:
        """Which encoder is in use: "fastokens" or "hf"."""
        return self._encoder.backend

    @property
    def inline_chars(self) -> int:
        """The longest text that is encoded on the event loop."""
        return self._encoder.inline_chars

    @property
    def max_model_len(self) -> int | None:
        """The tokenizer's own limit, else the model config's, else None."""
        own = getattr(self._tokenizer, "model_max_length", None)
        if isinstance(own, int) and 0 < own <= _LARGEST_SENSIBLE_LENGTH:
            return own
        return self._facts.context_length

    @property
    def vocab_size(self) -> int:
        """The least number that is no token id: the model config's, which engines go by, else the tokenizer's size
        with room for padding."""
        if self._vocab_size is None:
            try:
                self._vocab_size = self._facts.vocab_size or _PADDED_AT_MOST * len(self._tokenizer)
            except TypeError:
                self._vocab_size = 1 << 32  # a tokenizer that does not tell: what a token id has room for
        return self._vocab_size

    async def check_ids(self, body: Mapping[str, Any]) -> None:
        """Raises InvalidTokenIds where a chat body brings ids that are none of the model's, as all that makes a prompt
        of it does."""
        raw = body.get("input_ids")
        if raw is None:
            return
        if exceeds([raw], nodes=_INLINE_BODY_NODES, chars=_INLINE_BODY_CHARS):
            await self.offload(lambda: client_ids(raw, "input_ids", self.vocab_size))
        else:
            client_ids(raw, "input_ids", self.vocab_size)

    async def prompt(self, body: Mapping[str, Any]) -> Prompt:
        """The prompt of a chat body: the ids of `encode_chat`, at the cost of what is new in them. Raises Unrenderable.

        For one event loop: what earlier prompts left behind is not shared between threads.
        """
        if self._prompts is None:
            return Prompt(await self.encode_chat(body))
        return await self._prompts.prompt(body)

    @property
    def prompt_counts(self) -> PromptCounts | None:
        """How the conversation cache fares; None where there is none."""
        return None if self._prompts is None else self._prompts.counts()

    async def encode_chat(self, body: Mapping[str, Any]) -> TokenIds:
        """The prompt's ids as the engine's chat endpoint computes them. Raises Unrenderable.

        `body` is a decoded `/v1/chat/completions` object; it is not changed.
        """
        return await self._chat(body, Endpoint.CHAT)

    async def encode_chat_for_tokenize(self, body: Mapping[str, Any]) -> TokenIds:
        """The same for a `/v1/tokenize` object with messages, whose fields the engine reads slightly differently."""
        return await self._chat(body, Endpoint.TOKENIZE)

    async def _chat(self, body: Mapping[str, Any], endpoint: Endpoint) -> TokenIds:
        if self.is_large(body):
            return await self.offload(lambda: self._encode_rendered(self._render_large(body, endpoint), endpoint))
        rendered = self._render(body, endpoint)
        if self.is_short([rendered.text], rendered.assistant_prefix) and not self._encodes_twice:
            return self._encode_rendered(rendered, endpoint)
        return await self.offload(lambda: self._encode_rendered(rendered, endpoint))

    async def encode_text(self, text: str, add_special_tokens: bool = True) -> TokenIds:
        """Ids of a plain prompt. Raises Unrenderable for text that is not valid Unicode."""
        if self.is_short([text]):
            return self.encode(text, add_special_tokens)
        return await self.offload(lambda: self.encode(text, add_special_tokens))

    def encode(self, text: str, add_special_tokens: bool = True) -> TokenIds:
        """The same, blocking however long the text is. Raises Unrenderable for more than there is memory for."""
        if len(text) > self._encoder.most_chars:
            raise _too_long(self._encoder.most_chars)
        try:
            return self._encoder.encode(text, add_special_tokens)
        except UnicodeError:
            raise invalid("messages", "the text has characters that are not valid Unicode") from None

    def is_large(self, body: Mapping[str, Any]) -> bool:
        """Whether a body is too large to be normalised and rendered on the event loop."""
        rendered_from = [body[key] for key in _RENDERED_KEYS if key in body]
        return exceeds(rendered_from, nodes=_INLINE_BODY_NODES, chars=_INLINE_BODY_CHARS)

    def is_short(self, texts: Sequence[str], other: str | None = None) -> bool:
        """Whether texts may be encoded on the event loop: twice as much of what has one byte for each character."""
        if other:
            texts = [*texts, other]
        chars = sum(map(len, texts))
        limit = self.inline_chars
        return chars <= limit or (chars <= 2 * limit and all(map(str.isascii, texts)))

    def parse(self, body: Mapping[str, Any]) -> ChatCall | None:
        """What the template is to be called with, None for a body that brings its ids. Raises Unrenderable."""
        return self._parse(body, Endpoint.CHAT)

    def render(self, body: Mapping[str, Any], call: ChatCall | None = None) -> RenderedPrompt:
        """Normalise and render a chat body, parsed before or not. Blocking; raises Unrenderable."""
        return self._render(body, Endpoint.CHAT, call)

    def render_large(self, body: Mapping[str, Any]) -> RenderedPrompt:
        """The same for a body that may hold more than any context: that is not rendered."""
        return self._render_large(body, Endpoint.CHAT)

    def encode_rendered_text(self, text: str) -> TokenIds:
        """Ids of a chat's rendered text or a part of it. Blocking; raises Unrenderable."""
        return self.encode(text, not self._adds_specials)

    def encode_continued(self, prefix: str) -> TokenIds:
        """Ids of a final assistant message that is to be continued. Blocking; raises Unrenderable."""
        ids = self.encode(prefix, True)
        return ids[1:] if len(ids) and self._bos_token_id is not None and int(ids[0]) == self._bos_token_id else ids

    def encode_rendered(self, rendered: RenderedPrompt) -> TokenIds:
        """The ids of a rendered prompt. Blocking; raises Unrenderable."""
        return self._encode_rendered(rendered, Endpoint.CHAT)

    def decode(self, ids: Sequence[int] | TokenIds, skip_special_tokens: bool = True) -> str:
        """Text of token ids: about 0.3 us each, all of it blocking. Long sequences belong in `offload`."""
        plain = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
        if len(plain) > _LONG_DECODE and self._batches_decode():
            # The same function, but it lets go of the interpreter meanwhile.
            return str(self._tokenizer._tokenizer.decode_batch([plain], skip_special_tokens=skip_special_tokens)[0])
        return str(self._tokenizer.decode(plain, skip_special_tokens=skip_special_tokens))

    def _batches_decode(self) -> bool:
        """Whether transformers adds nothing to what its backend decodes."""
        if self._decodes_in_batches is None:
            backend = getattr(self._tokenizer, "_tokenizer", None)
            self._decodes_in_batches = False
            if backend is not None and hasattr(backend, "decode_batch"):
                ids = self._encoder.encode(_DECODE_PROBE, True).tolist()
                self._decodes_in_batches = all(
                    self._tokenizer.decode(ids, skip_special_tokens=skip)
                    == backend.decode_batch([ids], skip_special_tokens=skip)[0]
                    for skip in (False, True)
                )
        return self._decodes_in_batches

    def close(self) -> None:
        """Stop the worker threads; encoding that is still queued is cancelled."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def offload(self, work: Callable[[], T]) -> T:
        """Run blocking work on the threads that encode."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _chat_prompts(self, max_bytes: int) -> ChatPrompts | None:
        if self._encodes_twice or self._template is None:
            return None
        from sgl_router.tokenization.chat_prompts import ChatPrompts
        from sgl_router.tokenization.render_plan import RenderPlans

        cut = None
        if not isinstance(self._encoder, ReferenceEncoder):
            cut = conversation_cut(self._tokenizer, self.encode_rendered_text, self._template)
        return ChatPrompts(self, cut, RenderPlans(self._template, cut), max_bytes)

    def _usable_template(self) -> ChatTemplate:
        if self._facts.code_encoder is not None:
            raise Unrenderable(
                UnrenderableReason.CODE_ENCODER,
                f"the engine encodes this model's chats in code ({self._facts.code_encoder}), not by a chat template",
            )
        if self._broken_template is not None:
            raise Unrenderable(UnrenderableReason.TEMPLATE_ERROR, self._broken_template)
        if self._template is None:
            raise Unrenderable(UnrenderableReason.NO_TEMPLATE, "the tokenizer has no chat template")
        return self._template

    def _parse(self, body: Mapping[str, Any], endpoint: Endpoint) -> ChatCall | None:
        if body.get("input_ids") is not None:
            return None
        self._usable_template()
        try:
            return parse_chat(body, self._traits, endpoint)
        except RecursionError:
            raise invalid("messages", "nested too deeply") from None

    def _render(self, body: Mapping[str, Any], endpoint: Endpoint, parsed: ChatCall | None = None) -> RenderedPrompt:
        call = self._parse(body, endpoint) if parsed is None else parsed
        if call is None:
            return RenderedPrompt("", False, token_ids=client_ids(body["input_ids"], "input_ids", self.vocab_size))
        template = self._usable_template()

        def rendered(tools: list[dict[str, Any]] | None) -> str:
            return template.render(
                call.messages,
                tools=tools,
                documents=call.documents,
                add_generation_prompt=call.add_generation_prompt,
                variables=call.variables,
            )

        try:
            text = rendered(call.tools)
        except Exception as first:
            # Some templates want the bare functions; the engine gives every failing request that second chance.
            if not call.tools:
                raise _template_error(first) from first
            try:
                text = rendered([tool["function"] for tool in call.tools])
            except Exception as second:
                raise _template_error(second) from second
        add_specials = call.add_special_tokens or not self._adds_specials
        return RenderedPrompt(text, add_specials, call.assistant_prefix)

    def _render_large(self, body: Mapping[str, Any], endpoint: Endpoint) -> RenderedPrompt:
        call = self._parse(body, endpoint)
        most = self.most_chars if endpoint is Endpoint.CHAT else self._encoder.most_chars
        if call is not None and exceeds(call.messages, nodes=_ANY_NUMBER, chars=most):
            raise _too_long(most)
        return self._render(body, endpoint, call)

    def _encode_rendered(self, rendered: RenderedPrompt, endpoint: Endpoint) -> TokenIds:
        if rendered.token_ids is not None:
            return rendered.token_ids
        ids = self.encode(rendered.text, rendered.add_special_tokens)
        if rendered.assistant_prefix:
            ids = np.concatenate((ids, self.encode_continued(rendered.assistant_prefix)))
        if self._encodes_twice and endpoint is Endpoint.CHAT:
            return self.encode(self.decode(ids, skip_special_tokens=False), True)
        return ids


def _compile(source: TemplateSource | None, tokenizer: Any) -> tuple[ChatTemplate | None, str | None]:
    """The compiled template, or why the tokenizer's own does not compile; a configured file must compile."""
    from jinja2 import TemplateError

    from sgl_router.tokenization.template import ChatTemplate

    if source is None:
        return None, None
    named = getattr(tokenizer, "special_tokens_map", {})
    special_tokens = {name: str(token) for name, token in named.items() if not isinstance(token, (list, tuple))}
    try:
        return ChatTemplate(source.text, special_tokens), None
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        problem = f"{error}" if line is None else f"line {line}: {error}"
        if source.file is not None:
            raise TokenizerLoadError(f"chat_template {str(source.file)!r} does not compile: {problem}") from error
        log.warning("tokenizer's chat template does not compile", problem=problem)
        return None, f"the tokenizer's chat template does not compile: {problem}"


def _probe_texts(template: ChatTemplate | None) -> tuple[str, ...]:
    """A rendered conversation for the encoder's self-check, where the template renders the simplest one."""
    if template is None:
        return ()
    try:
        text = template.render(_PROBE, tools=None, documents=None, add_generation_prompt=True, variables={})
    except Exception:
        return ()
    return (text, text * 3)


def _template_error(error: Exception) -> Unrenderable:
    return Unrenderable(UnrenderableReason.TEMPLATE_ERROR, f"chat template: {str(error) or type(error).__name__}")


def _too_long(most: int) -> Unrenderable:
    problem = f"more than {most} characters of text, the most that is encoded here"
    return Unrenderable(UnrenderableReason.TOO_LONG, f"messages: {problem}", "messages")
