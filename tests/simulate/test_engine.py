"""The simulated engine is the mock's: same admissions, same times, same cache, whatever comes."""

from __future__ import annotations

import random

import pytest

from sgl_router.lab.mock_worker.ops import BlocksRemoved, BlocksStored
from sgl_router.lab.mock_worker.radix import RadixCache
from sgl_router.lab.mock_worker.scheduler import EngineModel, EngineRequest
from sgl_router.lab.mock_worker.timing import TimingModel
from sgl_router.lab.simulate.clock import SimClock
from sgl_router.lab.simulate.engine import Engine, Run
from sgl_router.lab.simulate.fleet import SimWorker
from sgl_router.lab.simulate.job import Job

PAGE = 4
TIMING = TimingModel(
    prefill_tokens_per_sec=1_000.0, prefill_overhead_ms=3.0, decode_ms_per_token=7.0, decode_ms_per_running=0.5
)


class Chains:
    """Tokens and keys of one prompt: page by page, with a key for each whole page of each prefix."""

    def __init__(self) -> None:
        self._keys: dict[tuple[int, ...], int] = {}
        self.pages: dict[int, tuple[int, ...]] = {}

    def job(self, number: int, at: float, prompt: tuple[int, ...], output: tuple[int, ...]) -> Job:
        computed = prompt + output[:-1]
        keys = []
        for end in range(PAGE, len(computed) + 1, PAGE):
            key = self._keys.setdefault(computed[:end], 1000 + len(self._keys))
            self.pages[key] = computed[:end]
            keys.append(key)
        return Job(number, at, len(prompt), len(output), tuple(keys), PAGE)


def history(seed: int, count: int) -> list[tuple[float, tuple[int, ...], tuple[int, ...]]]:
    """Conversations that branch and come back, bursts among them."""
    rng = random.Random(seed)
    past: list[tuple[int, ...]] = [()]
    now, made = 0.0, []
    for _ in range(count):
        if rng.random() < 0.7:
            now += rng.expovariate(1 / 0.04)
        begin = rng.choice(past)
        begin = begin[: rng.randrange(len(begin) + 1)]
        prompt = begin + tuple(rng.randrange(3) for _ in range(rng.randrange(1, 18)))
        prompt = prompt[:40]
        output = tuple(rng.randrange(3) for _ in range(rng.randrange(1, 14)))
        past.append(prompt + output)
        made.append((now, prompt, output))
    return made


def by_steps(requests: list[tuple[float, tuple[int, ...], tuple[int, ...]]], pages: int, running: int, chunk: int):
    """The mock's own model, step by step, as `mock.rank` drives it."""
    cache = RadixCache(page_size=PAGE, capacity=pages * PAGE)
    model = EngineModel(cache, TIMING, max_running=running, chunked_prefill_size=chunk)
    todo = [(at, EngineRequest(str(number), prompt, output)) for number, (at, prompt, output) in enumerate(requests)]
    done = [request for _, request in todo]
    now = 0.0
    while todo or not model.idle:
        if model.idle:
            # The first to come finds nobody: its step has begun when the next one is there, however soon that is.
            now, request = todo.pop(0)
            assert model.submit(request, now)
        ends = model.begin_step(now)
        assert ends is not None
        # What comes while a step runs is queued then; it cannot join the step.
        while todo and todo[0][0] <= ends + 1e-9:
            at, request = todo.pop(0)
            assert model.submit(request, at)
        now = ends
        model.end_step(now)
    return done, cache


def skipping(chains: Chains, requests: list[tuple[float, tuple[int, ...], tuple[int, ...]]], **engine: int | None):
    clock = SimClock()
    told: list[Run] = []
    held: set[int] = set()

    def published(changes) -> None:
        for stored, keys in changes:
            for key in keys:
                assert (key in held) is not stored
                held.symmetric_difference_update((key,))

    worker = SimWorker(clock, Engine(TIMING, page_size=PAGE, **engine), published)
    runs: list[Run | None] = []
    for number, (at, prompt, output) in enumerate(requests):
        job = chains.job(number, at, prompt, output)
        clock.at(at, lambda job=job: runs.append(worker.submit(job, told.append)))
    clock.run()
    return runs, worker.engine, held, told


@pytest.mark.parametrize("seed", range(40))
def test_it_does_what_the_mock_does(seed: int) -> None:
    rng = random.Random(seed)
    pages, running, chunk = rng.choice((16, 24, 60, 400)), rng.choice((1, 3, 20)), rng.choice((4, 10, 32, 1_000))
    requests = history(seed, 60)
    expected, cache = by_steps(requests, pages, running, chunk)
    chains = Chains()
    runs, engine, held, _ = skipping(chains, requests, cache_tokens=pages * PAGE, max_running=running, chunk=chunk)
    for wanted, run in zip(expected, runs, strict=True):
        assert run is not None
        assert run.cached_tokens == wanted.cached_tokens
        assert run.started_at == pytest.approx(wanted.started_at)
        assert run.first_token_at == pytest.approx(wanted.first_token_at)
        assert run.finished_at == pytest.approx(wanted.finished_at)
    # The cache holds the same pages, and what it published adds up to them.
    by_hash = {block.hash: block for block in cache.blocks()}
    prefixes = set()
    for block in by_hash.values():
        units, parent = block.units, block.parent
        while parent is not None:
            units, parent = by_hash[parent].units + units, by_hash[parent].parent
        prefixes.add(units)
    assert {chains.pages[block.hash] for block in engine.cache.blocks()} == prefixes
    assert {chains.pages[key] for key in held} == prefixes
    assert engine.cache.reserved_tokens == engine.cache.locked_tokens == 0


def test_one_whole_prompt_at_a_time() -> None:
    chains = Chains()
    requests = [(0.0, tuple(range(100)), (1,)), (0.0, tuple(range(200, 250)), (1, 2, 3)), (0.01, (7,) * 30, (1,))]
    runs, engine, _, told = skipping(chains, requests, cache_tokens=4_000, max_running=8, chunk=None)
    first, second, third = (run for run in runs if run is not None)
    assert first.first_token_at == pytest.approx(0.103)
    assert first.finished_at == first.first_token_at
    assert (second.started_at, second.first_token_at) == (pytest.approx(0.103), pytest.approx(0.156))
    assert third.first_token_at == pytest.approx(0.189)
    # Two more tokens, decoded once no prompt is left.
    assert second.finished_at == pytest.approx(0.189 + 2 * 0.0075)
    assert told == [first, second, third, second]
    assert engine.computed_tokens == 180
    assert engine.prefill_secs == pytest.approx(0.189)
    assert engine.decode_secs == pytest.approx(0.015)


def test_of_those_that_come_together_to_an_idle_engine_the_first_starts_alone() -> None:
    requests = [(1.0, tuple(range(50 * number, 50 * number + 10)), (1,)) for number in range(3)]
    runs, _, _, _ = skipping(Chains(), requests, cache_tokens=4_000, max_running=8, chunk=1_000)
    assert [run.started_at for run in runs if run is not None] == pytest.approx([1.0, 1.013, 1.013])


def test_what_is_told_is_answered_after_the_next_step_has_begun() -> None:
    chains, clock = Chains(), SimClock()
    worker = SimWorker(clock, Engine(TIMING, page_size=PAGE, cache_tokens=400, max_running=8), lambda changes: None)
    runs: list[Run | None] = []

    def told(run: Run) -> None:
        if len(runs) == 1:
            runs.append(worker.submit(chains.job(1, clock.now, tuple(range(50, 60)), (1,)), lambda run: None))

    runs.append(worker.submit(chains.job(0, 0.0, tuple(range(10)), (1, 2, 3)), told))
    clock.run()
    first, second = (run for run in runs if run is not None)
    assert second.arrived_at == first.first_token_at == pytest.approx(0.013)
    assert second.started_at == pytest.approx(0.013 + 0.0075), "one step of the first's answer is under way"


def test_what_can_never_fit_is_refused() -> None:
    runs, engine, _, _ = skipping(Chains(), [(0.0, tuple(range(30)), (1, 2, 3))], cache_tokens=32, max_running=8)
    assert runs == [None]
    assert engine.idle


def test_a_load_report_counts_what_waits_without_what_is_cached() -> None:
    chains = Chains()
    engine = Engine(TIMING, cache_tokens=400, page_size=PAGE, max_running=8, chunk=None)
    prompt = tuple(range(20))
    engine.submit(chains.job(0, 0.0, prompt, (1,)), 0.0)
    ends = engine.begin(0.0)
    assert ends is not None
    engine.submit(chains.job(1, 0.0, prompt[:16] + (9,) * 10, (1,)), 0.0)
    assert (engine.load().running, engine.load().waiting, engine.load().waiting_uncached_tokens) == (1, 1, 26)
    engine.end(ends)
    load = engine.load()
    assert (load.running, load.waiting_uncached_tokens, load.max_tokens) == (0, 10, 400)


def test_ops_are_the_caches() -> None:
    engine = Engine(TIMING, cache_tokens=16, page_size=PAGE, max_running=8)
    chains = Chains()
    now = 0.0
    for number, prompt in enumerate((tuple(range(9)), tuple(range(50, 59)))):
        engine.submit(chains.job(number, now, prompt, (1,)), now)
        ends = engine.begin(now)
        assert ends is not None
        now = ends
        engine.end(now)
    stored, removed, again = engine.ops
    assert isinstance(stored, BlocksStored) and isinstance(removed, BlocksRemoved) and isinstance(again, BlocksStored)
    assert removed.hashes == stored.hashes
