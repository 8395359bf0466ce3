"""Several data processes: a request that kills its worker kills no other, and no refusal inside a 200 is praised."""

from __future__ import annotations

import asyncio
import contextlib
import json
import pathlib
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest

from sgl_router.lab.mock_worker import EMBEDDED_TOKENIZER_PATH
from tests.component.scripted import GOOD, Scripted, fleet_of, saying, whole
from tests.processes.test_supervisor import CHAT, MODEL, Router, settles

Start = Callable[[list[Scripted]], Awaitable[Router]]


@pytest.fixture
async def start(tmp_path: pathlib.Path) -> AsyncIterator[Start]:
    async with contextlib.AsyncExitStack() as stack:
        # A connection for each request: the system deals them out among the data processes.
        connector = aiohttp.TCPConnector(force_close=True, limit=0)
        session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=40))
        )

        async def run(workers: list[Scripted]) -> Router:
            path = tmp_path / "config.yaml"
            settings = {
                "server": {"port": 0, "shutdown_drain_secs": 0, "processes": 2},
                "observability": {"log_format": "json"},
                "models": [{"id": MODEL, "tokenizer_path": EMBEDDED_TOKENIZER_PATH}],
                "discovery": {"static_urls": {"urls": [worker.url for worker in workers]}},
                "health": {"interval_secs": 60},
            }
            path.write_text(json.dumps(settings))
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "sgl_router", "--config", str(path), stderr=asyncio.subprocess.PIPE
            )
            router = Router(process, session)
            stack.push_async_callback(router.close)
            await router.listening()
            await settles(lambda: status(router, "/readyz"), 200)
            return router

        yield run


async def ask(router: Router, content: str) -> int:
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}]}
    async with router._session.post(router.url + CHAT, json=body) as reply:
        await reply.read()
        return reply.status


async def status(router: Router, path: str) -> int:
    return (await router.get(path))[0]


async def outcomes(router: Router) -> Counter[str]:
    text = (await router.get("/metrics"))[1].decode()
    found: Counter[str] = Counter()
    for line in re.findall(r"^sgl_router_worker_requests_total\{.*", text, re.MULTILINE):
        found[re.findall(r'outcome="(\w+)"', line)[0]] += int(float(line.rpartition(" ")[2]))
    return found


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
async def test_a_request_that_kills_its_worker_is_not_handed_on(start: Start, reset: bool) -> None:
    async def killed(worker: Scripted, body: bytes, writer: asyncio.StreamWriter) -> None:
        if b"poison" in body:
            await asyncio.sleep(0.1)
            worker.die(reset=reset)
        else:
            writer.write(GOOD)

    async with fleet_of(*[killed] * 3) as workers:
        router = await start(workers)
        assert set(await asyncio.gather(*(ask(router, f"warm {number}") for number in range(40)))) == {200}
        assert await ask(router, "poison") == 502
        executed = [body for worker in workers for body in worker.executed if b"poison" in body]
        assert len(executed) == 1
        await router.until(lambda: router.said("request", outcome="no_response"), "it is logged")
        await settles(lambda: outcomes(router), Counter(completed=40, no_response=1))


async def test_an_error_event_is_told_to_the_routing_process(start: Start) -> None:
    full = whole(b'data: {"error": {"message": "m", "code": 503}}\n\ndata: [DONE]\n\n', "text/event-stream")
    async with fleet_of(saying(full)) as workers:
        router = await start(workers)
        assert {await ask(router, f"hello {number}") for number in range(6)} == {200}
        await settles(lambda: outcomes(router), Counter(back_pressure=6))
