from __future__ import annotations

from typing import Any

from sgl_router.tokenization.self_check import corpus, first_difference


def texts(added: tuple[str, ...] = ("<|x|>",), vocabulary: int = 300) -> list[str]:
    return list(corpus(added, vocabulary, lambda ids: "".join(map(chr, ids)), ("extra",)))


def test_the_corpus_covers_what_encoders_differ_in() -> None:
    joined = texts()
    assert "" in joined
    assert "extra" in joined
    assert " " * 1200 in joined
    assert "中" * 1200 in joined
    assert any("<|x|>" in text and not text.startswith("<|x|>start") for text in joined)
    assert any("\u200d" in text for text in joined)
    assert any("def f(" in text for text in joined)
    assert len(joined) > 200


def test_it_is_the_same_on_every_start_and_bounded() -> None:
    assert texts() == texts()
    many = tuple(f"<|{i}|>" for i in range(10_000))
    assert len(texts(many)) < 700
    assert all("start" not in text or "extra" in text for text in texts((), 0))


def test_differences_name_their_text() -> None:
    def codes(text: str, special: bool) -> list[int]:
        return [0] * special + [ord(c) for c in text]

    def wrong(text: str, special: bool) -> list[int]:
        return codes(text, special)[:-1] if text.endswith("!") else codes(text, special)

    def wrong_special(text: str, special: bool) -> list[int]:
        return codes(text, False)

    def raising(text: str, special: bool) -> Any:
        raise ValueError(text)

    assert first_difference(codes, codes, ["a", "b!"]) is None
    assert "b!" in str(first_difference(wrong, codes, ["a", "b!"]))
    assert "add_special_tokens=True" in str(first_difference(wrong_special, codes, ["a"]))
    assert "ValueError" in str(first_difference(raising, codes, ["a"]))
