"""A generation in flight on one rank: its sequences, and the queue their progress comes through."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple

from sgl_router.lab.mock_worker.answers import AnswerBook, Detokenizer, Tokenizer
from sgl_router.lab.mock_worker.config import MockWorkerConfig, Role
from sgl_router.lab.mock_worker.generation import Generation, Prompt
from sgl_router.lab.mock_worker.pd import PrefillResult
from sgl_router.lab.mock_worker.rank import RankEngine
from sgl_router.lab.mock_worker.refusal import queue_full
from sgl_router.lab.mock_worker.scheduler import EngineRequest, FinishReason, Progress
from sgl_router.lab.mock_worker.sequence import Sequence


class GenerationRun:
    """Created with its answers decided; `start` queues it, `progress` follows it, `abort` ends it early."""

    def __init__(self, engine: RankEngine, sequences: list[Sequence]) -> None:
        self.engine = engine
        self.sequences = sequences
        self._by_request = {sequence.request: sequence for sequence in sequences}
        self._queue: asyncio.Queue[Progress] = asyncio.Queue()

    def start(self) -> None:
        """Queue every sequence, or none: a full queue raises Refusal."""
        for sequence in self.sequences:
            if not self.engine.submit(sequence.request, self._queue.put_nowait):
                self.abort()
                raise queue_full()

    def abort(self) -> None:
        """Stop the sequences that have not ended."""
        self.engine.abort(lambda request: request in self._by_request)

    async def progress(self) -> AsyncIterator[tuple[Sequence, str]]:
        """Each sequence that advanced with its new text, until all have ended."""
        unfinished = len(self.sequences)
        while unfinished:
            step = await self._queue.get()
            sequence = self._by_request[step.request]
            if not sequence.tokens and not sequence.cached_tokens:
                sequence.cached_tokens = step.request.cached_tokens
                sequence.host_tokens = step.request.host_tokens
            text = sequence.add(step.tokens, step.finish)
            unfinished -= step.finish is not None
            yield sequence, text


async def plan_run(
    generation: Generation,
    engine: RankEngine,
    config: MockWorkerConfig,
    answers: AnswerBook,
    tokenizer: Tokenizer,
    prefilled: dict[str, PrefillResult],
) -> GenerationRun:
    """Decide every answer and build the run; `prefilled` holds what prefill workers handed over, by rid."""
    sequences: list[Sequence] = []
    for prompt in generation.prompts:
        for variant in range(generation.variants):
            planned = await _plan(generation, prompt, variant, config, answers, tokenizer)
            request = EngineRequest(
                rid=prompt.rid if generation.variants == 1 else f"{prompt.rid}_{variant}",
                prompt=prompt.tokens,
                output=planned.tokens,
                finish=planned.finish,
                namespace=generation.namespace,
                session_id=generation.session_id,
            )
            sequence = Sequence(
                len(sequences),
                variant,
                prompt,
                request,
                Detokenizer(tokenizer),
                matched_stop=planned.matched_stop,
                ends_before=planned.ends_before,
            )
            bound = generation.output_format
            if bound is not None and bound.call is not None:
                sequence.call, sequence.call_id = bound.call, bound.call_id()
            handed_over = prefilled.get(prompt.rid)
            if handed_over is not None:
                sequence.cached_tokens = handed_over.cached_tokens
            sequences.append(sequence)
    return GenerationRun(engine, sequences)


class _Planned(NamedTuple):
    """An answer, decided beforehand. `ends_before`: characters of its text before the stop text that ended it."""

    tokens: tuple[int, ...]
    finish: FinishReason
    matched_stop: str | None = None
    ends_before: int | None = None


async def _plan(
    generation: Generation,
    prompt: Prompt,
    variant: int,
    config: MockWorkerConfig,
    answers: AnswerBook,
    tokenizer: Tokenizer,
) -> _Planned:
    bound = generation.output_format
    if bound is None:
        length, finish = _ending(generation, prompt, config, config.answer_tokens)
        tokens = await answers.answer(prompt.tokens, variant=variant, tokens=length)
    else:
        whole = tuple((await tokenizer.encode_text(bound.text, add_special_tokens=False)).tolist())
        length, finish = _ending(generation, prompt, config, len(whole), free=False)
        tokens = whole[:length]
    return _stopped(_Planned(tokens, finish), generation.stop, tokenizer)


def _ending(
    generation: Generation, prompt: Prompt, config: MockWorkerConfig, natural: int, *, free: bool = True
) -> tuple[int, FinishReason]:
    """How many tokens an answer gets that would end by itself after `natural`, and why it ends there. `free`: it could
    go on if `ignore_eos` asked for that."""
    room = min(config.context_length, config.cache_tokens // config.page_size * config.page_size)
    limit = room - len(prompt.tokens) - 1
    if generation.max_tokens is not None:
        limit = min(limit, generation.max_tokens)
    if config.role is Role.PREFILL:
        return min(limit, 1), FinishReason.LENGTH
    goes_on = free and generation.ignore_eos and generation.max_tokens is not None
    if not goes_on and (natural < limit or (not free and natural == limit)):
        return natural, FinishReason.STOP
    return limit, FinishReason.LENGTH


def _stopped(planned: _Planned, stop: tuple[str, ...], tokenizer: Tokenizer) -> _Planned:
    """Cut at the token that completes the first stop text."""
    if not stop:
        return planned
    detokenizer, text = Detokenizer(tokenizer), ""
    for count, token in enumerate(planned.tokens, start=1):
        text += detokenizer.add([token])
        found = [(place, given) for given in stop if (place := text.find(given)) >= 0]
        if found:
            place, given = min(found)
            return _Planned(planned.tokens[:count], FinishReason.STOP, given, place)
    return planned
