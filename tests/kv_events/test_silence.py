from __future__ import annotations

from sgl_router.kv_events.index.silence import Silence


def fell_silent(silence: Silence, prompts: range, *, published: int = 0, every: float = 1.0, **how: bool) -> int | None:
    """After how many prompts; None where it did not."""
    for count, prompt in enumerate(prompts, 1):
        if silence.completed(prompt, published, prompt * every, **how):
            return count
    return None


def test_some_tens_of_prompts_and_no_store_are_silence_told_once() -> None:
    silence = Silence()
    assert fell_silent(silence, range(1000)) == 32
    assert silence.silent
    assert fell_silent(silence, range(2000, 3000)) is None
    assert silence.heard(1)
    assert not silence.silent
    assert not silence.heard(1)
    assert fell_silent(silence, range(1000), published=1) == 32, "and again, where it dies"


def test_a_store_now_and_then_is_none() -> None:
    silence = Silence()
    for number in range(1000):
        assert not silence.completed(number, number // 20, float(number))


def test_one_prompt_again_and_again_is_none() -> None:
    silence = Silence()
    assert not any(silence.completed(number % 31, 0, float(number)) for number in range(10_000))


def test_a_burst_is_given_time_to_be_published() -> None:
    silence = Silence()
    assert fell_silent(silence, range(200), every=0.01) is None
    assert silence.completed(1000, 0, 6.0)


def test_where_the_engine_may_have_had_them_it_takes_more() -> None:
    assert fell_silent(Silence(), range(1000), doubtful=True) == 128
