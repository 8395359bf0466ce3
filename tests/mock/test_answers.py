"""Made-up answers: repeatable, and the same text whichever way it is turned into tokens."""

from __future__ import annotations

from sgl_router.lab.mock_worker.answers import AnswerBook, Detokenizer
from sgl_router.tokenization import ModelTokenizer


async def test_equal_prompts_get_equal_answers(tokenizer: ModelTokenizer) -> None:
    one, two = AnswerBook(tokenizer), AnswerBook(tokenizer)
    prompt = list(range(50))
    assert await one.answer(prompt, variant=0, tokens=20) == await two.answer(prompt, variant=0, tokens=20)
    assert await one.answer(prompt, variant=0, tokens=20) != await one.answer(prompt, variant=1, tokens=20)
    assert await one.answer(prompt, variant=0, tokens=20) != await one.answer([1], variant=0, tokens=20)


async def test_a_longer_answer_continues_the_shorter(tokenizer: ModelTokenizer) -> None:
    book = AnswerBook(tokenizer)
    longer = await book.answer([1, 2, 3], variant=0, tokens=100)
    assert len(longer) == 100
    assert await book.answer([1, 2, 3], variant=0, tokens=10) == longer[:10]
    assert await book.answer([1, 2, 3], variant=0, tokens=0) == ()


async def test_the_next_turn_finds_the_answer_in_the_cache(tokenizer: ModelTokenizer) -> None:
    book = AnswerBook(tokenizer)
    for seed in range(20):
        answer = await book.answer([seed], variant=0, tokens=40)
        text = tokenizer.decode(list(answer))
        assert tuple((await tokenizer.encode_text(text, False)).tolist()) == answer


async def test_text_comes_out_whole_characters_at_a_time(tokenizer: ModelTokenizer) -> None:
    text = "naïve café 😀 done"
    ids = (await tokenizer.encode_text(text, False)).tolist()
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.add([token]) for token in ids]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert "" in pieces


async def test_an_unfinished_character_is_given_out_at_the_end(tokenizer: ModelTokenizer) -> None:
    ids = (await tokenizer.encode_text("x😀", False)).tolist()
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.add(ids[:-1]) == ""
    assert detokenizer.rest().startswith("x")
    assert detokenizer.rest() == ""
