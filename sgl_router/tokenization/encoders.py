"""Text to token ids: the fastest encoder that provably equals the reference tokenizer."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import structlog

from sgl_router.tokenization.self_check import corpus, first_difference

__all__ = ["Encoder", "FastokensEncoder", "HfEncoder", "ReferenceEncoder", "TokenIds", "choose_encoder"]

log = structlog.get_logger(__name__)

TokenIds = npt.NDArray[np.uint32]

# A list this long is converted in pieces, so that a thread doing it gives the interpreter lock up in between.
_CONVERT_CHUNK = 32768


class Encoder(Protocol):
    """Encodes on any thread. `backend` is its name; `inline_chars` the longest text to encode on the event loop,
    `most_chars` the longest there is memory for: 30 bytes for each character here, 200 there."""

    backend: str
    inline_chars: int
    most_chars: int

    def encode(self, text: str, add_special_tokens: bool) -> TokenIds:
        """One-dimensional uint32 ids. Raises UnicodeError for text with lone surrogates."""
        ...


class ReferenceEncoder:
    """transformers' own `encode`, which is what the engine calls. Works for tokenizers written in Python, too."""

    backend = "hf"
    inline_chars = 1_000
    most_chars = 2 << 20

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str, add_special_tokens: bool) -> TokenIds:
        text.encode()
        return to_ids(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))


class HfEncoder:
    """The tokenizers backend called directly: no offsets, and the interpreter lock is released."""

    backend = "hf"
    # 4k characters: 1.6 ms for code, 2.8 ms for random CJK.
    inline_chars = 4_000
    most_chars = 2 << 20

    def __init__(self, tokenizer: Any) -> None:
        self._backend = tokenizer._tokenizer
        # transformers clears these before each encode; called directly, the backend would apply them.
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = bool(getattr(tokenizer, "split_special_tokens", False))

    def encode(self, text: str, add_special_tokens: bool) -> TokenIds:
        text.encode()
        return to_ids(self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids)


class FastokensEncoder:
    """fastokens over the same tokenizer.json; ids arrive as one buffer and the interpreter lock is released."""

    backend = "fastokens"
    # Text it has never met, 16k characters: 0.2 ms for code, 1.4 ms for random vocabulary, 2.9 ms for random CJK.
    inline_chars = 32_000
    most_chars = 8 << 20

    def __init__(self, tokenizer_json: str, fallback: Encoder) -> None:
        import fastokens

        self._tokenizer = fastokens.Tokenizer.from_json_str(tokenizer_json)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._fallback = fallback
        self.failures = 0

    def encode(self, text: str, add_special_tokens: bool) -> TokenIds:
        try:
            flat, _ = self._tokenizer.encode_batch_flat([text], add_special_tokens=add_special_tokens)
        except UnicodeError:
            raise
        except BaseException as error:
            # Its regex engine gives up on some texts rather than backtrack for ever; a panic of native code arrives
            # as a BaseException, which no handler above would expect.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            self.failures += 1
            log.debug("fastokens failed on a text", error=str(error), chars=len(text))
            return self._fallback.encode(text, add_special_tokens)
        return np.frombuffer(flat, dtype=np.uint32)


def to_ids(ids: list[int]) -> TokenIds:
    out = np.empty(len(ids), dtype=np.uint32)
    for start in range(0, len(ids), _CONVERT_CHUNK):
        out[start : start + _CONVERT_CHUNK] = ids[start : start + _CONVERT_CHUNK]
    return out


def choose_encoder(tokenizer: Any, samples: tuple[str, ...] = ()) -> Encoder:
    """The fastest encoder equal to `tokenizer.encode` on the self-check corpus; `samples` are added to the corpus."""
    reference = ReferenceEncoder(tokenizer)
    if not getattr(tokenizer, "is_fast", False) or getattr(tokenizer, "_tokenizer", None) is None:
        log.info("tokenizer has no fast backend", tokenizer_class=type(tokenizer).__name__)
        return reference
    backend = tokenizer._tokenizer
    texts = [
        text
        for text in corpus(
            (token.content for token in backend.get_added_tokens_decoder().values()),
            backend.get_vocab_size(),
            lambda ids: str(backend.decode(ids, skip_special_tokens=False)),
            samples,
        )
        if _is_encodable(text)
    ]
    # The reference's own arithmetic is done once; both candidates are held against it.
    expected = {(text, special): reference.encode(text, special) for text in texts for special in (False, True)}

    def reference_ids(text: str, special: bool) -> TokenIds:
        return expected[text, special]

    hf = HfEncoder(tokenizer)
    difference = first_difference(hf.encode, reference_ids, texts)
    if difference is not None:
        log.info("tokenizers backend not used", why=difference)
        return reference
    try:
        fast = FastokensEncoder(backend.to_str(), hf)
    except Exception as error:
        log.info("fastokens not used", why=f"{type(error).__name__}: {error}")
        return hf
    difference = first_difference(fast.encode, reference_ids, texts)
    if difference is None and fast.failures:
        difference = f"{fast.failures} texts it could not encode"
    if difference is not None:
        log.warning("fastokens not used", why=difference)
        return hf
    return fast


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
