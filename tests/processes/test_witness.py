"""What data processes hear of cached tokens reaches the process with the index: silence, claims that go."""

from __future__ import annotations

import asyncio
import contextlib
import json
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import structlog

from sgl_router.config import parse_config
from sgl_router.kv_events.index import silence
from sgl_router.lab.mock_worker import EMBEDDED_TOKENIZER_PATH, Dialect, MockWorker, MockWorkerConfig, shared_tokenizer
from sgl_router.runtime.data_process import DataProcess
from sgl_router.runtime.listen import bind
from sgl_router.runtime.paths import Paths
from sgl_router.runtime.routing_process import run_routing

MODEL = "mock-model"
PROMPT = "a prefix worth remembering, long enough for several pages of the cache " * 4


class Orders:
    """In the control socket's place."""

    def __init__(self) -> None:
        self.is_ready, self.leave = asyncio.Event(), asyncio.Event()

    async def start(self) -> None: ...

    def ready(self) -> None:
        self.is_ready.set()

    async def drain(self) -> None:
        await self.leave.wait()

    async def stop(self) -> None:
        await self.leave.wait()


class Router:
    """A routing process and a data process, both in this one, before one worker."""

    def __init__(self, url: str, worker: MockWorker, session: aiohttp.ClientSession) -> None:
        self.url, self.worker, self.session = url, worker, session

    async def ask(self, content: str, **extra: Any) -> str:
        """The decision's reason."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": 4, **extra}
        async with self.session.post(self.url + "/v1/chat/completions", json=body) as reply:
            assert reply.status == 200, await reply.read()
            await reply.read()
            await self.worker.idle()
            return str(reply.headers["x-sgl-router-decision"].partition(";")[0].removeprefix("reason="))

    async def get(self, path: str) -> str:
        async with self.session.get(self.url + path) as reply:
            return await reply.text()

    async def stream(self) -> dict[str, Any]:
        return dict(json.loads(await self.get("/workers"))["workers"][0]["ranks"][0]["stream"])

    async def applied(self) -> None:
        """All that the worker has published."""
        await self.until(lambda one: one["next_seq"] == self.worker.publishers[0].next_sequence, "events are applied")

    async def until(self, holds: Any, what: str) -> None:
        deadline = asyncio.get_running_loop().time() + 120
        while not holds(await self.stream()):
            assert asyncio.get_running_loop().time() < deadline, what
            await asyncio.sleep(0.005)


@pytest.fixture
async def start(tmp_path: pathlib.Path) -> AsyncIterator[Any]:
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)))

        async def make(**worker: Any) -> Router:
            settings = MockWorkerConfig.instant(model_id=MODEL, **worker)
            mock = MockWorker(settings, tokenizer=shared_tokenizer(EMBEDDED_TOKENIZER_PATH))
            await stack.enter_async_context(mock)
            config = parse_config(
                {
                    "server": {"port": 0, "shutdown_drain_secs": 0, "shutdown_grace_secs": 0},
                    "models": [{"id": MODEL, "tokenizer_path": EMBEDDED_TOKENIZER_PATH}],
                    "discovery": {"static_urls": {"urls": [mock.url]}},
                    "health": {"interval_secs": 0.2},
                }
            ).config
            paths, orders = Paths(tmp_path), Orders()
            routing = asyncio.create_task(run_routing(config, paths, orders))  # type: ignore[arg-type]

            async def end() -> None:
                orders.leave.set()
                await asyncio.wait((routing,), timeout=120)

            stack.push_async_callback(end)
            ready = asyncio.create_task(orders.is_ready.wait())
            await asyncio.wait((ready, routing), return_when=asyncio.FIRST_COMPLETED, timeout=120)
            assert ready.done()
            [listener] = bind("127.0.0.1", 0)
            data = DataProcess(config, 0, listener, paths)
            await data.start()
            stack.push_async_callback(data.stop)
            router = Router(f"http://127.0.0.1:{listener.getsockname()[1]}", mock, session)
            deadline = asyncio.get_running_loop().time() + 120
            while "reasons" in await router.get("/readyz"):
                assert asyncio.get_running_loop().time() < deadline, "not ready"
                await asyncio.sleep(0.01)
            await mock.subscribed()
            return router

        yield make


async def test_a_silent_rank_is_told_once(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "_LEAST_SECS", 0.0)
    router = await start()
    faults = router.worker.publishers[0].faults
    faults.muted = True
    with structlog.testing.capture_logs() as logs:
        for number in range(50):
            await router.ask(f"{number} {PROMPT}")
        await router.until(lambda one: one["silent"], "it is shown")
        told = [line for line in logs if line["event"] == "worker serves prompts and publishes no cache events"]
        assert len(told) == 1
        assert 'sgl_router_kv_events_silent{dp_rank="0"' in await router.get("/metrics")
        faults.clear()
        await router.ask(f"again {PROMPT}")
        await router.applied()
        await router.until(lambda one: not one["silent"], "it is over")


async def test_salts_that_the_events_do_not_tell_cost_no_others_their_trust(start: Any) -> None:
    router = await start(dialect=Dialect.ARRAY17)
    for number in range(8):
        await router.ask(f"{number} healthy {PROMPT}")
    await router.applied()
    seen = set()
    for number in range(24):
        await router.ask(f"{number} tenant {PROMPT}", cache_salt="tenant")
        await router.applied()
        assert await router.ask(f"{number} tenant {PROMPT}") == "cache_hit"
        seen.add(await router.ask(f"{number % 8} healthy {PROMPT}"))
    assert seen == {"cache_hit"}
    await router.until(lambda one: one["predictions"]["less"] == 24, "every report has come over the wire")
    view = await router.stream()
    assert (view["state"], view["given_up"]["rank"]) == ("live", 0)
