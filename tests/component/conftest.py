"""Mock workers and the daemon in this process, over real sockets on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any

import aiohttp
import msgspec
import pytest

from sgl_router.config import Config, parse_config
from sgl_router.lab.mock_worker import EMBEDDED_TOKENIZER_PATH, MockWorker, MockWorkerConfig, shared_tokenizer
from sgl_router.runtime.daemon import Daemon
from sgl_router.tokenization import ModelTokenizer
from sgl_router.tokenization import tokenizer as tokenizer_module
from sgl_router.tokenization.encoders import choose_encoder
from sgl_router.tokenization.loading import load_hf_tokenizer

MODEL = "mock-model"
Condition = Callable[[], bool]


async def until(condition: Condition, what: str, within: float = 120.0) -> None:
    """Wait until `condition()` holds; fail naming `what` otherwise."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    while not condition():
        assert loop.time() < deadline, f"not within {within} s: {what}"
        await asyncio.sleep(0.005)


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        merged[key] = merge(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return merged


class Rig:
    """One router, its workers, and a client."""

    def __init__(self, daemon: Daemon, workers: list[MockWorker], session: aiohttp.ClientSession) -> None:
        self.daemon = daemon
        self.workers = workers
        self.session = session

    @property
    def url(self) -> str:
        return self.daemon.url

    @property
    def services(self) -> Any:
        return self.daemon.services

    def worker(self, number: int) -> Any:
        """The registered incarnation of a mock worker."""
        return self.services.registry.get(self.workers[number].url)

    async def ready(self) -> None:
        await until(lambda: len(self.services.registry) == len(self.workers), "every worker is registered")
        await self.healthy()
        await until(lambda: not self.services.unready(), "the router is ready")
        for number, worker in enumerate(self.workers):
            if worker.publishers and self.worker(number).info.kv_source is not None:
                for rank in range(worker.config.dp_size):
                    await worker.subscribed(rank=rank)
        await until(
            lambda: all(
                status.connected and status.state.value != "repairing"
                for worker in self.services.registry.all()
                for status in self.services.index.status(worker)
            ),
            "every event stream is followed",
        )

    async def healthy(self) -> None:
        """Every registered worker is in selection: a router is ready with the first of them."""
        await until(
            lambda: all(worker.health.value == "healthy" for worker in self.services.registry.all()),
            "every worker is healthy",
        )

    async def settled(self) -> None:
        """Everything the workers published is in the index."""
        for number, worker in enumerate(self.workers):
            await worker.idle()
            for rank, publisher in enumerate(worker.publishers):
                stream = next(s.stream for s in self.services.index.status(self.worker(number)) if s.dp_rank == rank)
                await until(
                    lambda s=stream, p=publisher: _caught_up(s.expected, p.next_sequence) and self._pump_idle(),
                    f"events of worker {number} rank {rank} applied",
                )

    def _pump_idle(self) -> bool:
        return bool(self.services.index.pump.idle)

    async def ask(self, content: str = "hello", *, headers: dict[str, str] | None = None, **extra: Any) -> Answer:
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": 4, **extra}
        return await self.post("/v1/chat/completions", json=body, headers=headers)

    async def post(self, path: str, **request: Any) -> Answer:
        async with self.session.post(self.url + path, **request) as response:
            return Answer(response.status, response.headers, await response.read())

    async def get(self, path: str) -> Answer:
        async with self.session.get(self.url + path) as response:
            return Answer(response.status, response.headers, await response.read())

    until = staticmethod(until)

    def idle_load(self) -> bool:
        """Nothing in flight, anywhere."""
        targets = [target for worker in self.services.registry.all() for target in worker.targets]
        zero = all((t.inflight, t.prefill_tokens, t.decode_blocks) == (0, 0, 0) for t in targets)
        return len(self.services.load) == 0 and zero


def _caught_up(expected: int | None, published: int) -> bool:
    """The start-up clear (sequence 0) goes out before anyone can subscribe: having heard nothing is up to date then."""
    return expected == published or (expected is None and published <= 1)


class Answer:
    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        import json

        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]

    @property
    def worker(self) -> str:
        return str(self.headers["x-sgl-router-worker"])

    @property
    def decision(self) -> dict[str, str]:
        return dict(part.strip().split("=", 1) for part in self.headers["x-sgl-router-decision"].split(";"))


def router_config(urls: list[str], **over: Any) -> Config:
    """`model` is merged into the only model's section, everything else into the whole."""
    base: dict[str, Any] = {
        "server": {"port": 0, "shutdown_drain_secs": 0, "shutdown_grace_secs": 0},
        "models": [{"id": MODEL, "tokenizer_path": EMBEDDED_TOKENIZER_PATH}],
        "discovery": {"static_urls": {"urls": urls}},
        "health": {"interval_secs": 0.2, "timeout_secs": 1.0, "failure_threshold": 2},
    }
    base["models"] = [merge(base["models"][0], over.pop("model", {}))]
    return parse_config(merge(base, over)).config


@pytest.fixture(scope="session", autouse=True)
def _tokenizers_are_read_once() -> Iterator[None]:
    """Every router of these tests reads the same few and finds out the same about them: 0.2 s each time."""
    read: dict[str, Any] = {}
    chosen: dict[Any, Any] = {}

    def load(path: str) -> Any:
        if path not in read:
            read[path] = load_hf_tokenizer(path)
        return read[path]

    def choose(loaded: Any, probes: Sequence[str] = ()) -> Any:
        key = (id(loaded), *probes)
        if key not in chosen:
            chosen[key] = (choose_encoder(loaded, probes), loaded)
        return chosen[key][0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_module, "load_hf_tokenizer", load)
        patch.setattr(tokenizer_module, "choose_encoder", choose)
        yield


MakeRig = Callable[..., Awaitable[Rig]]


@pytest.fixture
async def rig() -> AsyncIterator[MakeRig]:
    """`await rig(workers=2, worker={...}, model={...}, ...)`: started, ready, with every event socket connected.
    `tokenizer`: the workers', where it is not the embedded one's.
    """
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30), auto_decompress=False)
        )

        async def make(
            workers: int = 1,
            *,
            worker: dict[str, Any] | None = None,
            wait: bool = True,
            urls: list[str] | None = None,
            started: list[str] | None = None,
            tokenizer: ModelTokenizer | None = None,
            **over: Any,
        ) -> Rig:
            settings = msgspec.convert({"model_id": MODEL, "speed": math.inf, **(worker or {})}, MockWorkerConfig)
            tokenizer = tokenizer or shared_tokenizer(EMBEDDED_TOKENIZER_PATH)
            mocks = [MockWorker(settings, tokenizer=tokenizer) for _ in range(workers)]
            for mock in mocks:
                await stack.enter_async_context(mock)
            for mock in mocks:
                for prompt in started or ():  # before the router exists
                    body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "max_tokens": 2}
                    async with session.post(mock.url + "/v1/chat/completions", json=body) as response:
                        assert response.status == 200
                await mock.idle()
            daemon = Daemon(router_config([mock.url for mock in mocks] + (urls or []), **over))
            await daemon.start()
            stack.push_async_callback(daemon.stop)
            made = Rig(daemon, mocks, session)
            if wait:
                await made.ready()
            return made

        yield make
