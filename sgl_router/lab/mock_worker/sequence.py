"""One sequence of a generation as it comes out of the engine."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import Any

from sgl_router.lab.mock_worker.answers import Detokenizer
from sgl_router.lab.mock_worker.generation import Prompt
from sgl_router.lab.mock_worker.scheduler import EngineRequest, FinishReason


@dataclass(eq=False)
class Sequence:
    """One variant of the answer to one prompt. `cached_tokens` is what the worker reports as its hit.

    `call_id` and `call` are set where the text is the arguments of a function. `ends_before`: how many characters of
    the text stand before the stop text `matched_stop`.
    """

    index: int
    variant: int
    prompt: Prompt
    request: EngineRequest
    detokenizer: Detokenizer
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    latest: str = ""
    finish: FinishReason | None = None
    cached_tokens: int = 0
    host_tokens: int = 0
    call: str | None = None
    call_id: str | None = None
    matched_stop: str | None = None
    ends_before: int | None = None
    told: int = 0

    def add(self, tokens: SequenceOf[int], finish: FinishReason | None) -> str:
        """Take in new tokens; returns the text they add."""
        self.tokens.extend(tokens)
        text = self.detokenizer.add(tokens)
        if finish is not None:
            text += self.detokenizer.rest()
            self.finish = finish
        if self.ends_before is not None:
            text = text[: max(self.ends_before - len(self.text), 0)]
        self.text += text
        self.latest = text
        return text

    def untold(self) -> list[int]:
        """The tokens since the last call: what the log probabilities of the next event are about."""
        tokens = self.tokens[self.told :]
        self.told = len(self.tokens)
        return tokens

    @property
    def cached_details(self) -> dict[str, int]:
        """The hit by tier."""
        return {"device": self.cached_tokens - self.host_tokens, "host": self.host_tokens}

    def finish_info(self) -> dict[str, Any] | None:
        """`finish_reason` in the engine's own, structured form."""
        if self.finish is None:
            return None
        if self.finish is FinishReason.LENGTH:
            return {"type": "length", "length": len(self.tokens)}
        if self.finish is FinishReason.STOP:
            return {"type": "stop", "matched": self.matched_stop}
        return {"type": "abort", "message": "Aborted by AbortReq."}
