"""`/v1/tokenize` and `/v1/detokenize` as the engine answers them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sgl_router.prompt import TokenIds
from sgl_router.tokenization.body_size import exceeds
from sgl_router.tokenization.errors import TokenizeBadRequest, Unrenderable, UnrenderableReason
from sgl_router.tokenization.fields import as_bool, type_name
from sgl_router.tokenization.tokenizer import ModelTokenizer

__all__ = ["detokenize_request", "tokenize_request"]

_UNKNOWN_LENGTH = -1
# Encoding a prompt costs a few microseconds however short it is; decoding 0.3 us for every token.
_INLINE_PROMPTS = 64
_INLINE_TOKENS = 4_096

_Ids = list[int] | TokenIds


async def tokenize_request(tokenizer: ModelTokenizer, body: Mapping[str, Any]) -> dict[str, Any]:
    """`{"tokens", "count", "max_model_len"}` for a prompt, a list of prompts, or messages. A long sequence of ids stays
    an array of numpy's.

    Raises TokenizeBadRequest for a malformed body, Unrenderable for a chat that only the engine can encode
    (media, chats encoded by code).
    """
    prompt, messages = body.get("prompt"), body.get("messages")
    if (prompt is None) == (messages is None):
        raise TokenizeBadRequest("exactly one of 'prompt' and 'messages' must be given", "prompt")
    add_special_tokens = _flag(body, "add_special_tokens")
    tokens: _Ids | list[_Ids]
    count: int | list[int]
    if messages is not None:
        tokens = await _messages(tokenizer, body)
        count = len(tokens)
    elif isinstance(prompt, str):
        [tokens] = await _prompts(tokenizer, {"prompt": prompt}, add_special_tokens)
        count = len(tokens)
    elif isinstance(prompt, list):
        batch = await _prompts(tokenizer, _numbered("prompt", prompt), add_special_tokens)
        tokens, count = batch, [len(ids) for ids in batch]
    else:
        raise TokenizeBadRequest(f"must be a string or an array of strings, got {type_name(prompt)}", "prompt")
    length = tokenizer.max_model_len
    return {"tokens": tokens, "count": count, "max_model_len": _UNKNOWN_LENGTH if length is None else length}


async def detokenize_request(tokenizer: ModelTokenizer, body: Mapping[str, Any]) -> dict[str, Any]:
    """`{"text"}` for an array of token ids, an array of texts for an array of arrays. Raises TokenizeBadRequest."""
    skip = _flag(body, "skip_special_tokens")
    tokens = body.get("tokens")
    if not isinstance(tokens, (list, np.ndarray)):
        raise TokenizeBadRequest(f"must be an array of token ids, got {type_name(tokens)}", "tokens")
    batched = isinstance(tokens, list) and bool(tokens) and isinstance(tokens[0], list)
    sequences: dict[str, Any] = _numbered("tokens", list(tokens)) if batched else {"tokens": tokens}

    def work() -> list[str]:
        return [_decode(tokenizer, ids, skip, path) for path, ids in sequences.items()]

    texts = await tokenizer.offload(work) if exceeds(tokens, nodes=_INLINE_TOKENS, chars=0) else work()
    return {"text": texts if batched else texts[0]}


def _numbered(name: str, items: list[Any]) -> dict[str, Any]:
    return {f"{name}[{i}]": item for i, item in enumerate(items)}


def _listed(ids: TokenIds) -> _Ids:
    return ids if len(ids) > _INLINE_TOKENS else list(ids.tolist())


async def _messages(tokenizer: ModelTokenizer, body: Mapping[str, Any]) -> _Ids:
    try:
        ids = _listed(await tokenizer.encode_chat_for_tokenize(body))
    except Unrenderable as error:
        if error.reason in (UnrenderableReason.MEDIA, UnrenderableReason.CODE_ENCODER):
            raise
        raise _bad_request(error) from error
    return ids


async def _prompts(tokenizer: ModelTokenizer, prompts: dict[str, Any], add_special_tokens: bool) -> list[_Ids]:
    def work() -> list[_Ids]:
        return [_encode(tokenizer, text, add_special_tokens, path) for path, text in prompts.items()]

    if exceeds(prompts, nodes=_INLINE_PROMPTS, chars=tokenizer.inline_chars):
        return await tokenizer.offload(work)
    return work()


def _encode(tokenizer: ModelTokenizer, text: Any, add_special_tokens: bool, path: str) -> _Ids:
    if not isinstance(text, str):
        raise TokenizeBadRequest(f"must be a string, got {type_name(text)}", path)
    try:
        return _listed(tokenizer.encode(text, add_special_tokens))
    except Unrenderable as error:
        if error.reason is UnrenderableReason.TOO_LONG:
            raise TokenizeBadRequest(error.message.removeprefix(f"{error.param}: "), path) from error
        raise TokenizeBadRequest("has characters that are not valid Unicode", path) from error


def _decode(tokenizer: ModelTokenizer, ids: Any, skip_special_tokens: bool, path: str) -> str:
    size = tokenizer.vocab_size
    if isinstance(ids, np.ndarray):
        if ids.min() < 0:
            raise TokenizeBadRequest("must be a non-negative integer", f"{path}[{int(ids.argmin())}]")
        if ids.max() >= size:
            problem = f"is no token id of this model; expected 0 to {size - 1}"
            raise TokenizeBadRequest(problem, f"{path}[{int(ids.argmax())}]")
    elif not isinstance(ids, list):
        raise TokenizeBadRequest("must hold either token ids or arrays of them, not both", path)
    for i, item in enumerate(ids if isinstance(ids, list) else ()):
        if isinstance(item, bool) or not isinstance(item, int) or item < 0:
            raise TokenizeBadRequest("must be a non-negative integer", f"{path}[{i}]")
        if item >= size:
            raise TokenizeBadRequest(f"is no token id of this model; expected 0 to {size - 1}", f"{path}[{i}]")
    try:
        return tokenizer.decode(ids, skip_special_tokens)
    except (OverflowError, TypeError, ValueError, KeyError, IndexError) as error:
        raise TokenizeBadRequest("these are no token ids of this model", path) from error


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name, True)
    try:
        return as_bool(value, name)
    except Unrenderable as error:
        raise _bad_request(error) from error


def _bad_request(error: Unrenderable) -> TokenizeBadRequest:
    """The same complaint, with the field in `param` alone."""
    return TokenizeBadRequest(error.message.removeprefix(f"{error.param}: "), error.param)
