"""`/v1/tokenize` and `/v1/detokenize` as the engine answers them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sgl_router.tokenization.errors import TokenizeBadRequest, Unrenderable, UnrenderableReason
from sgl_router.tokenization.fields import as_bool, type_name
from sgl_router.tokenization.tokenizer import ModelTokenizer

__all__ = ["detokenize_request", "tokenize_request"]

_UNKNOWN_LENGTH = -1


async def tokenize_request(tokenizer: ModelTokenizer, body: Mapping[str, Any]) -> dict[str, Any]:
    """`{"tokens", "count", "max_model_len"}` for a prompt, a list of prompts, or messages.

    Raises TokenizeBadRequest for a malformed body, Unrenderable for a chat that only the engine can encode
    (media, chats encoded by code).
    """
    prompt, messages = body.get("prompt"), body.get("messages")
    if (prompt is None) == (messages is None):
        raise TokenizeBadRequest("exactly one of 'prompt' and 'messages' must be given", "prompt")
    add_special_tokens = _flag(body, "add_special_tokens")
    tokens: list[int] | list[list[int]]
    count: int | list[int]
    if messages is not None:
        tokens = await _messages(tokenizer, body)
        count = len(tokens)
    elif isinstance(prompt, str):
        tokens = await _prompt(tokenizer, prompt, add_special_tokens, "prompt")
        count = len(tokens)
    elif isinstance(prompt, list):
        tokens = [await _prompt(tokenizer, text, add_special_tokens, f"prompt[{i}]") for i, text in enumerate(prompt)]
        count = [len(ids) for ids in tokens]
    else:
        raise TokenizeBadRequest(f"must be a string or an array of strings, got {type_name(prompt)}", "prompt")
    length = tokenizer.max_model_len
    return {"tokens": tokens, "count": count, "max_model_len": _UNKNOWN_LENGTH if length is None else length}


async def detokenize_request(tokenizer: ModelTokenizer, body: Mapping[str, Any]) -> dict[str, Any]:
    """`{"text"}` for an array of token ids, or an array of texts for an array of arrays. Raises TokenizeBadRequest."""
    skip = _flag(body, "skip_special_tokens")
    tokens = body.get("tokens")
    if not isinstance(tokens, list):
        raise TokenizeBadRequest(f"must be an array of token ids, got {type_name(tokens)}", "tokens")
    if not tokens:
        return {"text": ""}
    if isinstance(tokens[0], list):
        return {
            "text": [await _decode(tokenizer, ids, skip, f"tokens[{i}]") if ids else "" for i, ids in enumerate(tokens)]
        }
    return {"text": await _decode(tokenizer, tokens, skip, "tokens")}


async def _messages(tokenizer: ModelTokenizer, body: Mapping[str, Any]) -> list[int]:
    try:
        ids = await tokenizer.encode_chat_for_tokenize(body)
    except Unrenderable as error:
        if error.reason in (UnrenderableReason.MEDIA, UnrenderableReason.CODE_ENCODER):
            raise
        raise _bad_request(error) from error
    return [int(i) for i in ids.tolist()]


async def _prompt(tokenizer: ModelTokenizer, text: Any, add_special_tokens: bool, path: str) -> list[int]:
    if not isinstance(text, str):
        raise TokenizeBadRequest(f"must be a string, got {type_name(text)}", path)
    try:
        ids = await tokenizer.encode_text(text, add_special_tokens)
    except Unrenderable as error:
        raise TokenizeBadRequest("has characters that are not valid Unicode", path) from error
    return [int(i) for i in ids.tolist()]


async def _decode(tokenizer: ModelTokenizer, ids: Any, skip_special_tokens: bool, path: str) -> str:
    if not isinstance(ids, list):
        raise TokenizeBadRequest("must hold either token ids or arrays of them, not both", path)
    _check_ids(ids, path)
    try:
        return await tokenizer.decode_async(ids, skip_special_tokens)
    except (OverflowError, TypeError, ValueError, KeyError, IndexError) as error:
        raise TokenizeBadRequest("these are no token ids of this model", path) from error


def _check_ids(ids: Sequence[Any], path: str) -> None:
    for i, item in enumerate(ids):
        if isinstance(item, bool) or not isinstance(item, int) or item < 0:
            raise TokenizeBadRequest("must be a non-negative integer", f"{path}[{i}]")


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name, True)
    try:
        return as_bool(value, name)
    except Unrenderable as error:
        raise _bad_request(error) from error


def _bad_request(error: Unrenderable) -> TokenizeBadRequest:
    """The same complaint, with the field in `param` alone."""
    return TokenizeBadRequest(error.message.removeprefix(f"{error.param}: "), error.param)
