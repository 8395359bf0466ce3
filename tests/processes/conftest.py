"""A routing process's lease server and any number of data sides, in this process, over a real unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import random
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sgl_router.config import CacheAwareConfig, ModelConfig, PolicyName
from sgl_router.kv_events import DEFAULT_NAMESPACE, BlockHasher, MatchedPrefix, PromptMatch
from sgl_router.load import ActiveLoad
from sgl_router.policies import make_policy
from sgl_router.prompt import Prompt
from sgl_router.routing import LocalRouting, RouteRequest
from sgl_router.routing.remote.client import RemoteRouting
from sgl_router.routing.remote.fallback import LeastLoadedFallback
from sgl_router.routing.remote.replica import WorkerReplica
from sgl_router.routing.remote.server import RoutingServer
from sgl_router.workers import HealthState, Worker, WorkerInfo, WorkerRegistry

MODEL = "m"
PAGE = 16
CONFIG = ModelConfig(id=MODEL, tokenizer_path="unused", cache_aware=CacheAwareConfig(balance_abs_threshold=4))


async def until(condition: Callable[[], bool], what: str, within: float = 120.0) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    while not condition():
        assert loop.time() < deadline, f"not within {within} s: {what}"
        await asyncio.sleep(0.002)


class Index:
    """Stands in for KvIndex: `held` says how many leading blocks of the prompts of `ask(key=...)` a target holds."""

    def __init__(self) -> None:
        self.secret = 4711
        self.kinds = [(PAGE, False)]
        self.held: dict[Any, tuple[int, int]] = {}
        self.seen: list[tuple[int, dict[int, list[int]], Any]] = []
        self.reports: list[tuple[Any, int, int, int | None]] = []
        self.gate: asyncio.Event | None = None

    def hasher(self, page_size: int = PAGE, bigram: bool = False) -> BlockHasher:
        return BlockHasher(page_size, bigram=bigram, secret=self.secret)

    def keys(self, key: int, tokens: int, *kind: Any) -> list[int]:
        """Of the prompt `ask(tokens, key=key)`."""
        hasher, prompt = self.hasher(*kind), ask(tokens, key=key).prompt
        assert prompt is not None
        return hasher.chain(hasher.root(), prompt.ids, 0, hasher.prompt_blocks(tokens))

    def followed(self) -> list[Any]:
        target = SimpleNamespace(worker=SimpleNamespace(model_id=MODEL))
        return [(target, SimpleNamespace(stream=SimpleNamespace(hasher=self.hasher(*kind)))) for kind in self.kinds]

    def match_now(self, model_id: str, prompt: Prompt, namespace: Any) -> PromptMatch | None:
        return None if self.gate is not None else self.matched(prompt, namespace)

    async def match(self, model_id: str, prompt: Prompt, namespace: Any) -> PromptMatch:
        found = self.matched(prompt, namespace)
        if self.gate is not None:
            await self.gate.wait()
        return found

    def matched(self, prompt: Prompt, namespace: Any) -> PromptMatch:
        self.seen.append((len(prompt), {root: keys.computed.tolist() for root, keys in prompt.keys.items()}, namespace))
        total = (len(prompt) - 1) // PAGE
        found = {
            target: MatchedPrefix(blocks, blocks, blocks, blocks, PAGE)
            for target, (key, blocks) in self.held.items()
            if self.keys(key, PAGE + 1) == self.seen[-1][1][self.hasher().root(namespace)][:1]
        }
        match = PromptMatch.stated(found, dict.fromkeys(found, total))
        for part in match.parts:
            for target, slot in list(part.group.slots.items()):
                part.group.add(slot, target, SimpleNamespace(epoch=7))  # type: ignore[arg-type]
        return match

    def expect(self, *arguments: Any) -> None:
        return None

    def sent(self, decision: Any, match: Any) -> Any:
        def completed(cached_tokens: int | None) -> None:
            if cached_tokens is not None:
                self.reports.append((decision.target, decision.matched_tokens, cached_tokens, decision.epoch))

        return SimpleNamespace(completed=completed)


class Metrics:
    """Swallows what LocalRouting counts."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *arguments: Any) -> Any:
        return self


class Routing:
    """What a routing process has."""

    def __init__(self, path: str, urls: list[str], config: ModelConfig = CONFIG) -> None:
        self.path = path
        costed = {MODEL: 8_000.0} if config.policy is PolicyName.KV_COST else {}
        self.registry, self.load, self.index = WorkerRegistry(), ActiveLoad(costed), Index()
        self.registry.add_listener(self.load)
        policies = {MODEL: make_policy(config, random.Random(1))}
        queues = {MODEL: config.queue} if config.queue.enabled else {}
        self.routing = LocalRouting(
            self.registry,
            self.index,
            self.load,
            policies,
            Metrics(),
            queues=queues,  # type: ignore[arg-type]
        )
        self.merged: list[bytes] = []
        self.server = RoutingServer(
            self.routing,
            self.registry,
            self.load,
            self.index,
            merge=self.merged.append,  # type: ignore[arg-type]
        )
        for url in urls:
            self.add(url)

    def add(self, url: str, **info: Any) -> Worker:
        info = {"served_model_name": MODEL, "block_size": PAGE, "started_at": 1.0, **info}
        worker = Worker(url, WorkerInfo(**info), health=HealthState.HEALTHY)
        self.registry.add(worker)
        return worker

    def worker(self, url: str) -> Worker:
        worker = self.registry.get(url)
        assert worker is not None
        return worker

    def inflight(self) -> dict[str, int]:
        return {worker.url: sum(target.inflight for target in worker.targets) for worker in self.registry.all()}

    def idle(self) -> bool:
        targets = [target for worker in self.registry.all() for target in worker.targets]
        return not len(self.load) and all(
            (target.inflight, target.prefill_tokens, target.decode_blocks) == (0, 0, 0) for target in targets
        )


class Side:
    """What a data process has."""

    def __init__(self, path: str, number: int, answer_secs: float, explain_secs: float) -> None:
        self.registry, self.load = WorkerRegistry(), ActiveLoad()
        self.registry.add_listener(self.load)
        self.mirror = WorkerReplica(self.registry, {MODEL: CONFIG})
        policies = {MODEL: LeastLoadedFallback(random.Random(number))}
        fallback = LocalRouting(
            self.registry,
            None,
            self.load,
            policies,
            Metrics(),
            expecting=False,  # type: ignore[arg-type]
        )
        self.fell_back: list[str] = []
        self.routing = RemoteRouting(
            path,
            self.mirror,
            self.load,
            fallback,
            process=number,
            answer_secs=answer_secs,
            wait_secs={MODEL: 30.0},
            explain_secs=explain_secs,
            fell_back=self.fell_back.append,
        )
        self.task = asyncio.create_task(self.routing.run())

    async def choose(self, tokens: int = 160, *, key: int = 1, tried: set[Worker] | None = None) -> Any:
        return await self.routing.choose(ask(tokens, key=key), tried or set())

    def worker(self, url: str) -> Worker:
        worker = self.registry.get(url)
        assert worker is not None
        return worker

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait((self.task,))


def ask(tokens: int = 160, *, key: int = 1) -> RouteRequest:
    ids = np.arange(tokens, dtype=np.uint32)
    ids[0] = key
    return RouteRequest(model_id=MODEL, prompt=Prompt(ids), namespace=DEFAULT_NAMESPACE)


class Rig:
    """`routing()` starts (or starts anew) the routing side, `side()` a data side."""

    until = staticmethod(until)

    def __init__(self, folder: pathlib.Path, stack: contextlib.AsyncExitStack) -> None:
        self._path = str(folder / "s")
        self._stack = stack
        self._sides = 0

    async def routing(self, *urls: str, start: bool = True, config: ModelConfig = CONFIG) -> Routing:
        made = Routing(self._path, list(urls), config)
        self._stack.push_async_callback(made.server.close)
        if start:
            pathlib.Path(self._path).unlink(missing_ok=True)
            await made.server.start(self._path)
        return made

    async def start(self, made: Routing) -> None:
        pathlib.Path(self._path).unlink(missing_ok=True)
        await made.server.start(self._path)

    async def side(self, *, answer_secs: float = 5.0, explain_secs: float = 5.0, join: bool = True) -> Side:
        self._sides += 1
        made = Side(self._path, self._sides, answer_secs, explain_secs)
        self._stack.push_async_callback(made.stop)
        if join:
            assert await made.routing.joined(10.0)
        return made


@pytest.fixture
async def rig(tmp_path: pathlib.Path) -> AsyncIterator[Rig]:
    async with contextlib.AsyncExitStack() as stack:
        yield Rig(tmp_path, stack)
