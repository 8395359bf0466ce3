"""`/internal/explain` and `/internal/decisions` of a router in several processes, beside one in a single process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from sgl_router.config import Config, parse_config
from sgl_router.lab.mock_worker import EMBEDDED_TOKENIZER_PATH, MockWorker, MockWorkerConfig, shared_tokenizer
from sgl_router.runtime.daemon import Daemon
from sgl_router.runtime.data_process import DataProcess
from sgl_router.runtime.listen import bind
from sgl_router.runtime.paths import Paths
from sgl_router.runtime.routing_process import run_routing

MODEL = "mock-model"
CHAT, EXPLAIN = "/v1/chat/completions", "/internal/explain"
PROMPT = "the same long beginning of a conversation, several pages of it, for everyone who asks " * 4


def chat(content: str = PROMPT, **extra: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": 4, **extra}


class Orders:
    """In the control socket's place: what the supervisor would say."""

    def __init__(self) -> None:
        self.is_ready = asyncio.Event()
        self.leave = asyncio.Event()

    async def start(self) -> None: ...

    def ready(self) -> None:
        self.is_ready.set()

    async def drain(self) -> None:
        await self.leave.wait()

    async def stop(self) -> None:
        await self.leave.wait()


class Rig:
    """`several`: a data process and a routing process. `one`: a router of its own, over the same workers."""

    def __init__(self, workers: list[MockWorker], session: aiohttp.ClientSession) -> None:
        self.workers = workers
        self.session = session
        self.several = self.one = ""
        self.data: Any = None
        self.orders: Any = None
        self.routing: Any = None

    async def call(
        self, url: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, Any]:
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        method = "GET" if body is None else "POST"
        headers = {"content-type": "application/json", **(headers or {})}
        async with self.session.request(method, url + path, data=data, headers=headers) as reply:
            return reply.status, await reply.read(), reply.headers

    async def explain(self, url: str, body: Any) -> Any:
        status, answer, headers = await self.call(url, EXPLAIN, body)
        assert (status, headers["content-type"]) == (200, "application/json"), answer
        return json.loads(answer)

    async def decisions(self, url: str) -> list[dict[str, Any]]:
        return list(json.loads((await self.call(url, "/internal/decisions"))[1])["decisions"])

    async def until(self, condition: Any, what: str, within: float = 120.0) -> None:
        deadline = asyncio.get_running_loop().time() + within
        while not await condition():
            assert asyncio.get_running_loop().time() < deadline, f"not within {within} s: {what}"
            await asyncio.sleep(0.01)

    async def start(self, config: Config, folder: pathlib.Path, stack: contextlib.AsyncExitStack) -> None:
        daemon = Daemon(config)
        await daemon.start()
        stack.push_async_callback(daemon.stop)
        self.one = daemon.url

        paths = Paths(folder)
        orders = self.orders = Orders()
        self.routing = asyncio.create_task(run_routing(config, paths, orders))  # type: ignore[arg-type]
        stack.push_async_callback(self.end_routing)
        ready = asyncio.create_task(orders.is_ready.wait())
        await asyncio.wait((ready, self.routing), return_when=asyncio.FIRST_COMPLETED, timeout=120)
        assert ready.done() and not self.routing.done()
        [listener] = bind("127.0.0.1", 0)
        self.data = DataProcess(config, 0, listener, paths)
        await self.data.start()
        stack.push_async_callback(self.data.stop)
        self.several = f"http://127.0.0.1:{listener.getsockname()[1]}"

        async def both() -> bool:
            return {(await self.call(url, "/readyz"))[0] for url in (self.one, self.several)} == {200}

        await self.until(both, "ready")
        for worker in self.workers:
            for rank in range(worker.config.dp_size):
                await worker.subscribed(rank=rank, count=2)

    async def end_routing(self) -> None:
        self.orders.leave.set()
        await asyncio.wait((self.routing,), timeout=120)


@pytest.fixture
async def rig(tmp_path: pathlib.Path) -> AsyncIterator[Any]:
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(force_close=True), timeout=aiohttp.ClientTimeout(total=30)
            )
        )

        async def make(**model: Any) -> Rig:
            tokenizer = shared_tokenizer(EMBEDDED_TOKENIZER_PATH)
            settings = MockWorkerConfig.instant(model_id=MODEL)
            workers = [MockWorker(settings, tokenizer=tokenizer) for _ in range(2)]
            for worker in workers:
                await stack.enter_async_context(worker)
            config = {
                "server": {"port": 0, "shutdown_drain_secs": 0, "shutdown_grace_secs": 0},
                "models": [{"id": MODEL, "tokenizer_path": EMBEDDED_TOKENIZER_PATH, **model}],
                "discovery": {"static_urls": {"urls": [worker.url for worker in workers]}},
                "health": {"interval_secs": 0.2},
            }
            made = Rig(workers, session)
            await made.start(parse_config(config).config, tmp_path, stack)
            return made

        yield make


async def test_the_answer_is_that_of_one_process(rig: Any) -> None:
    router = await rig(policy="kv_cost")
    status, _, headers = await router.call(router.several, CHAT, chat())
    assert status == 200
    holder = headers["x-sgl-router-worker"]

    async def known() -> bool:
        told = [await router.explain(url, chat()) for url in (router.several, router.one)]
        return all(one["decision"]["reason"] == "cache_hit" for one in told)

    await router.until(known, "both have heard of what the worker holds")
    several, one = await router.explain(router.several, chat()), await router.explain(router.one, chat())
    assert list(several) == list(one)
    assert list(several["decision"]) == list(one["decision"])
    assert several["decision"]["worker"] == one["decision"]["worker"] == holder
    for term in ("prompt_tokens", "matched_blocks", "total_blocks", "page_size", "candidates"):
        assert several["decision"][term] == one["decision"][term] > 0
    assert [list(entry) for entry in several["candidates"]] == [list(entry) for entry in one["candidates"]]
    for entry, alike in zip(_sorted(several["candidates"]), _sorted(one["candidates"]), strict=True):
        assert list(entry.pop("cost")) == list(alike.pop("cost"))
        assert entry == alike
    decisions = [len(await router.decisions(url)) for url in (router.several, router.one)]
    assert decisions == [1, 0], "only what was sent"


def _sorted(candidates: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(candidates, key=lambda entry: str(entry["worker"]))


BAD = [
    b"",
    b"{",
    b"[]",
    b'{"messages": []}',
    b'{"model": 7, "messages": []}',
    b'{"model": "", "messages": []}',
    b'{"model": "nobody", "messages": []}',
    b'{"model": "mock-model"}',
    b'{"model": "mock-model", "messages": 1}',
    b'{"model": "mock-model", "messages": [], "stream": "yes"}',
    b'{"model": "mock-model", "model": "mock-model", "messages": []}',
    b"\xff",
]


async def test_refusals_are_those_of_one_process(rig: Any) -> None:
    router = await rig()
    for body in BAD:
        several, one = [await router.call(url, EXPLAIN, body) for url in (router.several, router.one)]
        assert several[:2] == one[:2]
        assert several[0] in (400, 404) and several[2]["x-router-error-code"] == one[2]["x-router-error-code"]
    for url in (router.several, router.one):
        status, answer, headers = await router.call(url, EXPLAIN)
        assert (status, json.loads(answer)["error"]["code"]) == (405, "method_not_allowed")
        assert headers["allow"] == "POST"
        status, answer, _ = await router.call(url, EXPLAIN, b"{}", {"content-encoding": "gzip"})
        assert (status, json.loads(answer)["error"]["code"]) == (400, "bad_request")


async def test_policies_that_look_at_no_prompt_explain_too(rig: Any) -> None:
    router = await rig(policy="round_robin")
    for url in (router.several, router.one):
        status, _, headers = await router.call(url, CHAT, chat())
        assert status == 200
        told = [(await router.explain(url, chat()))["decision"] for _ in range(3)]
        assert {(one["reason"], one["unmatched"]) for one in told} == {("round_robin", "not_asked")}
        [worker] = {one["worker"] for one in told}
        assert worker != headers["x-sgl-router-worker"], "nobody's turn is used up"


async def test_while_the_routing_process_is_away_no_guess_is_given(rig: Any) -> None:
    router = await rig()
    await router.explain(router.several, chat())
    await router.end_routing()
    status, answer, headers = await router.call(router.several, EXPLAIN, chat())
    error = json.loads(answer)["error"]
    assert (status, error["code"], error["type"]) == (503, "routing_unavailable", "service_unavailable_error")
    assert (headers["x-router-error-code"], headers["retry-after"]) == ("routing_unavailable", "1")
    assert "restarting" in error["message"]
    status, answer, _ = await router.call(router.several, EXPLAIN, b'{"messages": []}')
    assert (status, json.loads(answer)["error"]["param"]) == (400, "model")
    status, answer, _ = await router.call(router.several, "/internal/decisions")
    assert (status, json.loads(answer)["error"]["code"]) == (503, "routing_unavailable")


async def test_the_last_decisions_are_told_with_what_came_of_them(rig: Any) -> None:
    router = await rig()
    for number in range(3):
        body, headers = chat(stream=number == 2), {"x-request-id": f"id-{number}"}
        assert (await router.call(router.several, CHAT, body, headers))[0] == 200

    async def over() -> bool:
        return all(entry["outcome"] is not None for entry in await router.decisions(router.several))

    await router.until(over, "their ends are known")
    several = await router.decisions(router.several)
    assert [entry["request_id"] for entry in several] == ["id-2", "id-1", "id-0"]
    assert (await router.call(router.one, CHAT, chat()))[0] == 200
    [one] = await router.decisions(router.one)
    for entry in several:
        assert list(entry) == list(one)
        assert (entry["model"], entry["outcome"]) == (MODEL, "completed")
        assert entry["first_byte_ms"] > 0
        assert entry["prompt_tokens"] == one["prompt_tokens"] > 0
    status, answer, _ = await router.call(router.several, "/internal/decisions?limit=x")
    assert (status, json.loads(answer)["error"]["param"]) == (400, "limit")
    assert len(json.loads((await router.call(router.several, "/internal/decisions?limit=2"))[1])["decisions"]) == 2
