"""Chat rendering and token ids equal to the engine's."""

from __future__ import annotations

from sgl_router.tokenization.encoders import TokenIds
from sgl_router.tokenization.endpoints import detokenize_request, tokenize_request
from sgl_router.tokenization.errors import (
    InvalidTokenIds,
    TokenizeBadRequest,
    TokenizerLoadError,
    Unrenderable,
    UnrenderableReason,
)
from sgl_router.tokenization.tokenizer import ModelTokenizer, RenderedPrompt

__all__ = [
    "InvalidTokenIds",
    "ModelTokenizer",
    "RenderedPrompt",
    "TokenIds",
    "TokenizeBadRequest",
    "TokenizerLoadError",
    "Unrenderable",
    "UnrenderableReason",
    "detokenize_request",
    "tokenize_request",
]
