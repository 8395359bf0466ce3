"""Response bodies of the generating endpoints, buffered and streamed, with the engine's fields."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence as SequenceOf
from typing import Any, Protocol

import msgspec

from sgl_router.lab.mock_worker.answers import Tokenizer
from sgl_router.lab.mock_worker.generation import Endpoint, Generation
from sgl_router.lab.mock_worker.logprobs import chat_logprobs, completion_logprobs, native_logprobs
from sgl_router.lab.mock_worker.scheduler import FinishReason
from sgl_router.lab.mock_worker.sequence import Sequence

DONE = b"data: [DONE]\n\n"

_encoder = msgspec.json.Encoder()


def server_sent(body: Any) -> bytes:
    """One SSE event carrying JSON."""
    return b"data: " + _encoder.encode(body) + b"\n\n"


class Reply(Protocol):
    """The shape of one endpoint's answers."""

    def opening(self, sequence: Sequence) -> dict[str, Any] | None:
        """The event before a sequence's first text."""

    def chunk(self, sequence: Sequence, text: str) -> dict[str, Any] | None:
        """The event for new text; None when there is nothing to send."""

    def ending(self, sequence: Sequence) -> dict[str, Any] | None:
        """The event that carries a sequence's finish reason."""

    def closing(self, sequences: SequenceOf[Sequence]) -> list[dict[str, Any]]:
        """The events after the last sequence ended."""

    def buffered(self, sequences: SequenceOf[Sequence]) -> Any:
        """The whole answer."""


def usage(generation: Generation, sequences: SequenceOf[Sequence], *, cache_report: bool) -> dict[str, Any]:
    """The `usage` object: prompt and cached tokens count once per prompt, whatever `n` is."""
    firsts = [sequence for sequence in sequences if sequence.variant == 0]
    prompt_tokens = sum(len(sequence.prompt.tokens) for sequence in firsts)
    completion_tokens = sum(len(sequence.tokens) for sequence in sequences)
    details = {"cached_tokens": sum(sequence.cached_tokens for sequence in firsts)} if cache_report else None
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
        "prompt_tokens_details": details,
        "reasoning_tokens": 0,
        "completion_tokens_details": None,
    }


class _OpenAIReply(ABC):
    """What chat and text completions have in common."""

    object_name = ""
    chunk_name = ""

    def __init__(self, generation: Generation, tokenizer: Tokenizer, *, cache_report: bool) -> None:
        self._generation = generation
        self._tokenizer = tokenizer
        self._cache_report = cache_report
        self._created = int(time.time())

    def closing(self, sequences: SequenceOf[Sequence]) -> list[dict[str, Any]]:
        events = []
        extension = self._extension(sequences)
        if extension:
            events.append({**self._head(self.chunk_name), "choices": [], "usage": None, "sglext": extension})
        if self._generation.include_usage:
            report = usage(self._generation, sequences, cache_report=self._cache_report)
            events.append({**self._head(self.chunk_name), "choices": [], "usage": report})
        return events

    def buffered(self, sequences: SequenceOf[Sequence]) -> Any:
        body = {
            **self._head(self.object_name),
            "choices": [self._choice(sequence) for sequence in sequences],
            "usage": usage(self._generation, sequences, cache_report=self._cache_report),
            "metadata": {"weight_version": "default"},
        }
        extension = self._extension(sequences)
        if extension:
            body["sglext"] = extension
        return body

    @abstractmethod
    def _choice(self, sequence: Sequence) -> dict[str, Any]:
        """One entry of `choices`."""

    def _head(self, name: str) -> dict[str, Any]:
        return {
            "id": self._generation.prompts[0].rid,
            "object": name,
            "created": self._created,
            "model": self._generation.model,
        }

    def _event(self, choice: dict[str, Any]) -> dict[str, Any]:
        return {**self._head(self.chunk_name), "choices": [choice]}

    def _extension(self, sequences: SequenceOf[Sequence]) -> dict[str, Any]:
        extension: dict[str, Any] = {}
        if self._generation.wants_cached_details:
            extension["cached_tokens_details"] = sequences[0].cached_details
        if self._generation.wants_input_ids:
            extension["input_ids"] = list(self._generation.prompts[0].tokens)
        return extension

    def _with_prompt_ids(self, choice: dict[str, Any], sequence: Sequence) -> dict[str, Any]:
        if self._generation.wants_prompt_ids:
            choice["prompt_token_ids"] = list(sequence.prompt.tokens)
        return choice


class ChatReply(_OpenAIReply):
    """/v1/chat/completions."""

    object_name = "chat.completion"
    chunk_name = "chat.completion.chunk"

    def opening(self, sequence: Sequence) -> dict[str, Any] | None:
        return self._event(self._delta(sequence, role="assistant", content="", tool_calls=None))

    def chunk(self, sequence: Sequence, text: str) -> dict[str, Any] | None:
        if not text:
            return None
        if sequence.call is None:
            return self._event(self._delta(sequence, self._logprobs(sequence), content=text))
        function: dict[str, Any] = {"arguments": text}
        call: dict[str, Any] = {"index": 0, "function": function}
        if len(text) == len(sequence.text):  # the first piece
            call |= {"id": sequence.call_id, "type": "function"}
            function["name"] = sequence.call
        return self._event(self._delta(sequence, self._logprobs(sequence), content=None, tool_calls=[call]))

    def ending(self, sequence: Sequence) -> dict[str, Any] | None:
        delta = self._delta(sequence)
        return self._event({**delta, "finish_reason": self._finish(sequence), "matched_stop": sequence.matched_stop})

    def _delta(self, sequence: Sequence, logprobs: dict[str, Any] | None = None, **content: Any) -> dict[str, Any]:
        return {
            "index": sequence.index,
            "delta": {**content, "reasoning_content": None},
            "logprobs": logprobs,
            "finish_reason": None,
            "matched_stop": None,
        }

    def _logprobs(self, sequence: Sequence) -> dict[str, Any] | None:
        """Of the tokens since the last event."""
        top = self._generation.logprobs
        return None if top is None else chat_logprobs(sequence.untold(), top, self._tokenizer)

    def _finish(self, sequence: Sequence) -> str | None:
        if sequence.call is not None and sequence.finish is FinishReason.STOP:
            return "tool_calls"
        return None if sequence.finish is None else sequence.finish.value

    def _choice(self, sequence: Sequence) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": sequence.text, "reasoning_content": None}
        if sequence.call is not None:
            function = {"name": sequence.call, "arguments": sequence.text}
            call = {"id": sequence.call_id, "index": 0, "type": "function", "function": function}
            message |= {"content": None, "tool_calls": [call]}
        choice = {
            "index": sequence.index,
            "message": message,
            "logprobs": self._logprobs(sequence),
            "finish_reason": self._finish(sequence),
            "matched_stop": sequence.matched_stop,
        }
        return self._with_prompt_ids(choice, sequence)


class CompletionReply(_OpenAIReply):
    """/v1/completions."""

    object_name = "text_completion"
    chunk_name = "text_completion"

    def opening(self, sequence: Sequence) -> dict[str, Any] | None:
        return None

    def chunk(self, sequence: Sequence, text: str) -> dict[str, Any] | None:
        # Unlike chat, the finish reason travels with the last text.
        return None if sequence.finish is not None else self._event(self._text(sequence, text))

    def ending(self, sequence: Sequence) -> dict[str, Any] | None:
        return self._event(self._text(sequence, sequence.latest))

    def _choice(self, sequence: Sequence) -> dict[str, Any]:
        return self._with_prompt_ids(self._text(sequence, sequence.text), sequence)

    def _text(self, sequence: Sequence, text: str) -> dict[str, Any]:
        return {
            "index": sequence.index,
            "text": text,
            "logprobs": self._logprobs(sequence),
            "finish_reason": None if sequence.finish is None else sequence.finish.value,
            "matched_stop": sequence.matched_stop,
        }

    def _logprobs(self, sequence: Sequence) -> dict[str, Any] | None:
        top = self._generation.logprobs
        if top is None:
            return None
        offset = len(self._tokenizer.decode(sequence.tokens[: sequence.told]))
        return completion_logprobs(sequence.untold(), top, self._tokenizer, offset)


class NativeReply:
    """/generate: every event repeats the whole text so far."""

    def __init__(self, generation: Generation, *, rank: int | None) -> None:
        self._generation = generation
        self._rank = rank

    def opening(self, sequence: Sequence) -> dict[str, Any] | None:
        return None

    def chunk(self, sequence: Sequence, text: str) -> dict[str, Any] | None:
        return None if sequence.finish is not None else self._body(sequence)

    def ending(self, sequence: Sequence) -> dict[str, Any] | None:
        return self._body(sequence)

    def closing(self, sequences: SequenceOf[Sequence]) -> list[dict[str, Any]]:
        return []

    def buffered(self, sequences: SequenceOf[Sequence]) -> Any:
        if len(sequences) == 1 and not self._generation.batched:
            return self._body(sequences[0])
        return [self._body(sequence) for sequence in sequences]

    def _body(self, sequence: Sequence) -> dict[str, Any]:
        body: dict[str, Any] = {
            "text": sequence.text,
            "output_ids": sequence.tokens,
            "meta_info": {
                "id": sequence.prompt.rid,
                "finish_reason": sequence.finish_info(),
                "prompt_tokens": len(sequence.prompt.tokens),
                "weight_version": "default",
                "completion_tokens": len(sequence.tokens),
                "cached_tokens": sequence.cached_tokens,
                "cached_tokens_details": sequence.cached_details if sequence.cached_tokens else None,
                "dp_rank": self._rank,
            },
        }
        if self._generation.logprobs is not None:
            body["meta_info"]["output_token_logprobs"] = native_logprobs(sequence.tokens)
        if self._generation.stream and (self._generation.batched or self._generation.variants > 1):
            body["index"] = sequence.index
        return body


def reply_for(generation: Generation, tokenizer: Tokenizer, *, cache_report: bool, rank: int | None) -> Reply:
    """The reply shape of a generation's endpoint."""
    if generation.endpoint is Endpoint.CHAT:
        return ChatReply(generation, tokenizer, cache_report=cache_report)
    if generation.endpoint is Endpoint.COMPLETIONS:
        return CompletionReply(generation, tokenizer, cache_report=cache_report)
    return NativeReply(generation, rank=rank)
