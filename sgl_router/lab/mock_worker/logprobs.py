"""Log probabilities of the mock model: made up, the same for one token, in the shapes of the engine's endpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sgl_router.lab.mock_worker.answers import Tokenizer

__all__ = ["chat_logprobs", "completion_logprobs", "native_logprobs"]


def chat_logprobs(tokens: Sequence[int], top: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """`choices[].logprobs` of a chat, with the `top` likeliest alternatives of each token."""
    return {"content": [_chat_entry(token, top, tokenizer) for token in tokens]}


def completion_logprobs(tokens: Sequence[int], top: int, tokenizer: Tokenizer, offset: int = 0) -> dict[str, Any]:
    """`choices[].logprobs` of a text completion. `offset`: characters of the response before these tokens."""
    texts = [_text(token, tokenizer) for token in tokens]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": texts,
        "token_logprobs": [_logprob(token) for token in tokens],
        "top_logprobs": [dict(_alternatives(token, top, tokenizer)) for token in tokens] if top else None,
        "text_offset": offsets,
    }


def native_logprobs(tokens: Sequence[int]) -> list[list[Any]]:
    """`meta_info.output_token_logprobs` of /generate: value, token id, text (None unless asked for, which is not)."""
    return [[_logprob(token), token, None] for token in tokens]


def _chat_entry(token: int, top: int, tokenizer: Tokenizer) -> dict[str, Any]:
    text = _text(token, tokenizer)
    alternatives = [
        {"token": other, "bytes": list(other.encode()), "logprob": value}
        for other, value in _alternatives(token, top, tokenizer)
    ]
    return {"token": text, "bytes": list(text.encode()), "logprob": _logprob(token), "top_logprobs": alternatives}


def _alternatives(token: int, top: int, tokenizer: Tokenizer) -> list[tuple[str, float]]:
    """The token itself first: the mock model is greedy."""
    others = [token, *(other for other in range(top) if other != token)][:top]
    return [(_text(other, tokenizer), _logprob(token) - place) for place, other in enumerate(others)]


def _logprob(token: int) -> float:
    return -(token % 97 + 1) / 256


def _text(token: int, tokenizer: Tokenizer) -> str:
    return tokenizer.decode([token], skip_special_tokens=False)
