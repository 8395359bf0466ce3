"""Equal workers get equal shares, slower ones less: `kv_cost` over workers whose times scatter, in simulated time."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator

from sgl_router.config import KvCostConfig
from sgl_router.kv_events import MatchedPrefix, PromptMatch
from sgl_router.load import ActiveLoad
from sgl_router.load.reports import LoadReport
from sgl_router.policies import KvCost, PolicyInput
from sgl_router.workers import Target, Worker, WorkerInfo

PAGE = 16


class Engine:
    """First come, first computed: `overhead_secs` for a prompt, and then so many tokens a second; all of it times
    `slowness`, and scattered by `noise`."""

    def __init__(self, rng: random.Random, noise: float, slowness: float = 1.0) -> None:
        self.slowness = slowness
        self.first_secs = 0.0
        """What the first prompt of all takes more: a compiler."""
        self.free_at = 0.0
        self.tokens = 0
        self.busy_secs = 0.0
        self._rng = rng
        self._noise = noise

    def through(self, tokens: int, now: float) -> float:
        """When a prompt that comes now will have been computed."""
        secs = (0.015 + tokens / 20_000) * self.slowness * self._rng.lognormvariate(0.0, self._noise)
        if not self.tokens:
            secs += self.first_secs
        self.free_at = max(self.free_at, now) + secs
        self.tokens += tokens
        self.busy_secs += secs
        return self.free_at


class World:
    """Clients that send one request after another, each until its answer is there; and workers that may report."""

    def __init__(
        self,
        workers: int = 2,
        *,
        seed: int = 1,
        noise: float = 0.1,
        slowness: dict[int, float] | None = None,
        report_secs: float | None = None,
        ranks: int = 1,
        decode_secs: float = 0.05,
    ) -> None:
        self.rng = random.Random(seed)
        self.now = 1_000.0
        self.load = ActiveLoad({"m": 8_000.0}, clock=lambda: self.now)
        self.policy = KvCost(random.Random(seed), KvCostConfig(), clock=lambda: self.now)
        self.targets: list[Target] = []
        self.engines: dict[Target, Engine] = {}
        self.held: dict[int, dict[Target, int]] = {}  # tokens of each conversation
        self.sent: Counter[Target] = Counter()
        self.first: Counter[Target] = Counter()  # of conversations
        self.moves = 0
        self._noise = noise
        self._decode_secs = decode_secs
        self._report_secs = report_secs
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._ranks = ranks
        for number in range(workers):
            self.add((slowness or {}).get(number, 1.0))
        if report_secs is not None:
            self.later(report_secs, self._report)

    def add(self, slowness: float = 1.0) -> Worker:
        info = WorkerInfo(served_model_name="m", block_size=PAGE, dp_size=self._ranks)
        worker = Worker(f"http://w{len(self.targets)}:1", info)
        self.load.worker_added(worker)
        for target in worker.targets:
            self.targets.append(target)
            self.engines[target] = Engine(self.rng, self._noise, slowness)
        return worker

    def restart(self, number: int) -> Target:
        """Another incarnation in its place, that knows nothing."""
        old = self.targets[number]
        self.load.worker_removed(old.worker)
        for known in self.held.values():
            known.pop(old, None)
        (new,) = self.add(self.engines.pop(old).slowness).targets
        self.targets.pop(number)
        return new

    def later(self, secs: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._due, (self.now + secs, next(self._order), what))

    def _report(self) -> None:
        for target in self.targets:
            engine = self.engines[target]
            assert target.forecast is not None
            own = target.own_tokens(self.now)
            report = LoadReport(
                running=target.inflight,
                waiting=0,
                used_tokens=int(own),
                prefilled_tokens=engine.tokens,
                prefill_busy_secs=engine.busy_secs,
            )
            target.forecast.reported(report, self.now, own)
        assert self._report_secs is not None
        self.later(self._report_secs, self._report)

    def run(self, prompts: Iterator[tuple[int, int | None]], *, clients: int = 1, pause: float = 0.0) -> None:
        """Until they are all answered. Of each prompt: its tokens, and the conversation it is the next turn of."""
        left = 0

        def client() -> None:
            nonlocal left
            prompt = next(prompts, None)
            if prompt is None:
                left -= 1
                return
            self._send(*prompt, lambda: self.later(pause, client))

        for _ in range(clients):
            left += 1
            client()
        while left:
            self.now, _, what = heapq.heappop(self._due)
            what()

    def _send(self, tokens: int, conversation: int | None, done: Callable[[], None]) -> None:
        known = self.held.setdefault(conversation, {}) if conversation is not None else {}
        found = {
            target: MatchedPrefix(count // PAGE, count // PAGE, count // PAGE, count // PAGE, PAGE)
            for target, count in known.items()
        }
        totals = dict.fromkeys(self.targets, (tokens - 1) // PAGE)
        decision = self.policy.select(self.targets, PolicyInput(PromptMatch.stated(found, totals), tokens))
        target = decision.target
        self.sent[target] += 1
        if conversation is not None:
            if not known:
                self.first[target] += 1
            elif target not in known:
                self.moves += 1
            known[target] = tokens
        guard = self.load.acquire(
            target,
            prefill_tokens=decision.uncached_tokens,
            decode_blocks=-(-tokens // PAGE),
            now=self.now,
        )

        def computed() -> None:
            guard.first_byte()
            self.later(self._decode_secs, over)

        def over() -> None:
            guard.release(4)
            done()

        self.later(self.engines[target].through(decision.uncached_tokens, self.now) - self.now, computed)

    def shares(self, sent: Counter[Target] | None = None) -> list[float]:
        """Of what was sent, for each target: 1.0 is an even share."""
        counts = self.sent if sent is None else sent
        return [counts[target] * len(self.targets) / sum(counts.values()) for target in self.targets]


def unique(count: int, low: int, high: int | None = None, seed: int = 3) -> Iterator[tuple[int, None]]:
    rng = random.Random(seed)
    for _ in range(count):
        yield rng.randint(low, high or low), None


def conversations(count: int, turns: int = 4, seed: int = 3) -> Iterator[tuple[int, int]]:
    """One after the other; each turn is a little longer than the last."""
    rng = random.Random(seed)
    for number in range(count):
        tokens = rng.randint(200, 900)
        for _ in range(turns):
            yield tokens, number
            tokens += rng.randint(40, 160)


SIZES = [(600, 600), (40, 60), (30, 300), (100, 8_000)]
