from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from sgl_router.tokenization.encoders import FastokensEncoder, HfEncoder, ReferenceEncoder, choose_encoder, to_ids
from sgl_router.tokenization.loading import load_hf_tokenizer

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


class FakeTokenizer:
    """The part of fastokens the router uses, over the tokenizers package."""

    def __init__(self, source: str) -> None:
        self._tokenizer = Tokenizer.from_str(source)
        self.calls = 0

    @classmethod
    def from_json_str(cls, source: str) -> FakeTokenizer:
        return cls(source)

    def no_truncation(self) -> None:
        self._tokenizer.no_truncation()

    def no_padding(self) -> None:
        self._tokenizer.no_padding()

    def encode_batch_flat(self, texts: list[str], add_special_tokens: bool = False) -> tuple[bytes, bytes]:
        texts[0].encode()
        self.calls += 1
        ids = self._tokenizer.encode(texts[0], add_special_tokens=add_special_tokens).ids
        return np.array(ids, dtype=np.uint32).tobytes(), b""


def install(monkeypatch: pytest.MonkeyPatch, tokenizer: type[FakeTokenizer]) -> None:
    module = types.ModuleType("fastokens")
    module.Tokenizer = tokenizer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fastokens", module)


def test_the_installed_fastokens_passes_the_self_check(hf: Any, bos_hf: Any) -> None:
    expected = "fastokens" if importlib.util.find_spec("fastokens") else "hf"
    assert choose_encoder(hf).backend == expected
    assert choose_encoder(bos_hf).backend == expected


def test_without_fastokens_the_tokenizers_backend_is_used(hf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastokens", None)
    encoder = choose_encoder(hf)
    assert isinstance(encoder, HfEncoder)
    assert encoder.backend == "hf"


def test_fastokens_is_used_where_it_agrees(hf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeTokenizer)
    assert choose_encoder(hf).backend == "fastokens"


def test_fastokens_is_not_used_when_it_cannot_load_the_tokenizer(hf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(FakeTokenizer):
        @classmethod
        def from_json_str(cls, source: str) -> FakeTokenizer:
            raise ValueError("unsupported pre-tokenizer type: Metaspace")

    install(monkeypatch, Refusing)
    assert isinstance(choose_encoder(hf), HfEncoder)


@pytest.mark.parametrize("culprit", ["\u200d", "<|im_start|>", " " * 1200])
def test_fastokens_is_not_used_when_it_differs_on_the_corpus(
    hf: Any, monkeypatch: pytest.MonkeyPatch, culprit: str
) -> None:
    class Differing(FakeTokenizer):
        def encode_batch_flat(self, texts: list[str], add_special_tokens: bool = False) -> tuple[bytes, bytes]:
            flat, offsets = super().encode_batch_flat(texts, add_special_tokens)
            return (flat[:-4], offsets) if culprit in texts[0] else (flat, offsets)

    install(monkeypatch, Differing)
    assert isinstance(choose_encoder(hf), HfEncoder)


def test_fastokens_is_not_used_when_it_fails_on_the_corpus(hf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(FakeTokenizer):
        def encode_batch_flat(self, texts: list[str], add_special_tokens: bool = False) -> tuple[bytes, bytes]:
            raise RuntimeError("match limit")

    install(monkeypatch, Failing)
    assert isinstance(choose_encoder(hf), HfEncoder)


def test_rendered_samples_are_part_of_the_check(hf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Differing(FakeTokenizer):
        def encode_batch_flat(self, texts: list[str], add_special_tokens: bool = False) -> tuple[bytes, bytes]:
            flat, offsets = super().encode_batch_flat(texts, add_special_tokens)
            return (b"", offsets) if texts[0] == "a rendered prompt" else (flat, offsets)

    install(monkeypatch, Differing)
    assert choose_encoder(hf).backend == "fastokens"
    assert choose_encoder(hf, ("a rendered prompt",)).backend == "hf"


class _Panic(BaseException):
    pass


_Panic.__name__ = "PanicException"


@pytest.mark.parametrize("error", [RuntimeError("match limit"), _Panic("index out of bounds")])
def test_a_text_fastokens_fails_on_is_encoded_by_the_fallback(
    hf: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    class Failing(FakeTokenizer):
        def encode_batch_flat(self, texts: list[str], add_special_tokens: bool = False) -> tuple[bytes, bytes]:
            raise error

    install(monkeypatch, Failing)
    encoder = FastokensEncoder(hf._tokenizer.to_str(), HfEncoder(hf))
    assert encoder.encode("hello", True).tolist() == hf.encode("hello")
    assert encoder.failures == 1


def test_interrupts_are_not_swallowed(hf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(FakeTokenizer):
        def encode_batch_flat(self, texts: list[str], add_special_tokens: bool = False) -> tuple[bytes, bytes]:
            raise KeyboardInterrupt

    install(monkeypatch, Interrupted)
    with pytest.raises(KeyboardInterrupt):
        FastokensEncoder(hf._tokenizer.to_str(), HfEncoder(hf)).encode("x", True)


def test_a_backend_that_differs_from_transformers_is_not_used(hf: Any) -> None:
    class Wrapped:
        is_fast = True
        _tokenizer = hf._tokenizer

        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return [*hf.encode(text, add_special_tokens=add_special_tokens), 7]

    assert isinstance(choose_encoder(Wrapped()), ReferenceEncoder)


def test_tokenizers_without_a_fast_backend_go_through_transformers() -> None:
    class Slow:
        is_fast = False

        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return [ord(c) for c in text]

    encoder = choose_encoder(Slow())
    assert isinstance(encoder, ReferenceEncoder)
    assert encoder.encode("ab", True).tolist() == [97, 98]


def test_truncation_in_the_tokenizer_file_is_not_applied(tokenizer_dir: Path, tmp_path: Path) -> None:
    spec = json.loads((tokenizer_dir / "tokenizer.json").read_text())
    spec["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(spec))
    tokenizer = load_hf_tokenizer(str(path)).tokenizer
    encoder = choose_encoder(tokenizer)
    assert len(encoder.encode("one two three four five six seven", True)) > 4


def test_lone_surrogates_raise_unicode_errors(hf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeTokenizer)
    fast = FastokensEncoder(hf._tokenizer.to_str(), HfEncoder(hf))
    for encoder in (fast, HfEncoder(hf), ReferenceEncoder(hf)):
        with pytest.raises(UnicodeError):
            encoder.encode("a\ud800b", True)
    assert fast.failures == 0


@pytest.mark.parametrize("length", [0, 1, 32768, 70_001])
def test_long_lists_are_converted_whole(length: int) -> None:
    ids = [(i * 2654435761) % (1 << 32) for i in range(length)]
    converted = to_ids(ids)
    assert converted.dtype == np.uint32
    assert converted.tolist() == ids


@given(st.lists(st.one_of(st.text(max_size=30), st.sampled_from(SPECIALS)), max_size=8), st.booleans())
def test_every_encoder_agrees_with_transformers(bos_encoders: Any, parts: list[str], special: bool) -> None:
    tokenizer, encoders = bos_encoders
    text = "".join(parts)
    expected = tokenizer.encode(text, add_special_tokens=special)
    for encoder in encoders:
        assert encoder.encode(text, special).tolist() == expected


@pytest.fixture(scope="session")
def bos_encoders(bos_hf: Any) -> tuple[Any, list[Any]]:
    return bos_hf, [choose_encoder(bos_hf), HfEncoder(bos_hf), ReferenceEncoder(bos_hf)]
