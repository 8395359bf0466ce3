"""The router as several processes: signals, deaths, what is lost and what is not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from sgl_router.lab.mock_worker import EMBEDDED_TOKENIZER_PATH, MockWorker, MockWorkerConfig, shared_tokenizer
from sgl_router.tokenization import ModelTokenizer

MODEL = "mock-model"
CHAT = "/v1/chat/completions"
# As `sgl-router --config`, with another patience.
WATCHED = """
import sys
from sgl_router.config import load_config
from sgl_router.runtime.supervisor import Watch, supervise
path, secs, patience = sys.argv[1:]
sys.exit(supervise(load_config(path).config, Watch(float(secs), int(patience))))
"""


class Router:
    """`sgl-router` as a child of the test, and everything it has said."""

    def __init__(self, process: asyncio.subprocess.Process, session: aiohttp.ClientSession) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []
        self.text = ""
        self._session = session
        self._reading = asyncio.create_task(self._read())
        self.url = ""
        self.sent = 0

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.text += line.decode()
            with contextlib.suppress(ValueError):
                self.lines.append(json.loads(line))

    def said(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == event and fields.items() <= line.items()]

    async def until(self, condition: Callable[[], Any], what: str, within: float = 120.0) -> None:
        deadline = asyncio.get_running_loop().time() + within
        while not condition():
            assert self.process.returncode is None, f"ended before {what}:\n{self.text}"
            assert asyncio.get_running_loop().time() < deadline, f"not {what}:\n{self.text}"
            await asyncio.sleep(0.01)

    async def listening(self) -> list[int]:
        """The process ids: the routing process's first."""
        await self.until(lambda: self.said("router listening"), "listening")
        [line] = self.said("router listening")
        self.url = line["url"]
        return [line["routing_pid"], *line["data_pids"]]

    async def get(self, path: str) -> tuple[int, bytes]:
        async with self._session.get(self.url + path) as reply:
            return reply.status, await reply.read()

    async def post(self, path: str, body: Any) -> tuple[int, bytes]:
        async with self._session.post(self.url + path, json=body) as reply:
            return reply.status, await reply.read()

    async def chat(self, content: str = "hello") -> tuple[int, str]:
        """Status and reason of the decision."""
        self.sent += 1
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": 2}
        async with self._session.post(self.url + CHAT, json=body) as reply:
            await reply.read()
            return reply.status, reply.headers["x-sgl-router-decision"].partition(";")[0].removeprefix("reason=")

    async def explain(self, content: str = "hello") -> tuple[int, Any]:
        body = {"model": MODEL, "messages": [{"role": "user", "content": content}]}
        async with self._session.post(self.url + "/internal/explain", json=body) as reply:
            return reply.status, json.loads(await reply.read())

    async def inflight(self) -> int:
        return sum(worker["inflight"] for worker in json.loads((await self.get("/workers"))[1])["workers"])

    async def counted(self) -> int:
        """Chat requests by /metrics."""
        text = (await self.get("/metrics"))[1].decode()
        prefix = f'sgl_router_requests_total{{method="POST",route="{CHAT}"}} '
        return sum(int(float(line.removeprefix(prefix))) for line in text.splitlines() if line.startswith(prefix))

    async def tokens_compared(self) -> dict[str, int]:
        text = (await self.get("/metrics"))[1].decode()
        found = re.findall(r'^sgl_router_worker_token_checks_total\{outcome="(\w+)"\} (\d+)', text, re.MULTILINE)
        return {outcome: int(count) for outcome, count in found if int(count)}

    async def close(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._reading


async def settles(read: Callable[[], Awaitable[Any]], wanted: Any, within: float = 120.0) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    while (got := await read()) != wanted:
        assert loop.time() < deadline, f"{got!r}, not {wanted!r}"
        await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return "(zombie)" not in pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


Start = Callable[..., Awaitable[Router]]


@pytest.fixture
async def workers() -> AsyncIterator[list[MockWorker]]:
    tokenizer = shared_tokenizer(EMBEDDED_TOKENIZER_PATH)
    async with contextlib.AsyncExitStack() as stack:
        made = [MockWorker(MockWorkerConfig.instant(model_id=MODEL), tokenizer=tokenizer) for _ in range(2)]
        for worker in made:
            await stack.enter_async_context(worker)
        yield made


@pytest.fixture
async def start(workers: list[MockWorker], tmp_path: pathlib.Path) -> AsyncIterator[Start]:
    async with contextlib.AsyncExitStack() as stack:
        # A connection for each request: the system deals them out among the data processes.
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True, limit=0), timeout=aiohttp.ClientTimeout(total=40)
        )
        await stack.enter_async_context(session)

        async def run(
            tokenizer: str = EMBEDDED_TOKENIZER_PATH,
            *,
            watch: tuple[float, int] | None = None,
            model: dict[str, Any] | None = None,
            sections: dict[str, Any] | None = None,
            **server: Any,
        ) -> Router:
            path = tmp_path / "config.yaml"
            settings = {
                "server": {"port": 0, "shutdown_drain_secs": 0, "processes": 2, **server},
                "observability": {"log_format": "json"},
                "models": [{"id": MODEL, "tokenizer_path": tokenizer, **(model or {})}],
                "discovery": {"static_urls": {"urls": [worker.url for worker in workers]}},
                "health": {"interval_secs": 0.2},
                **(sections or {}),
            }
            path.write_text(json.dumps(settings))
            arguments = [sys.executable, "-m", "sgl_router", "--config", str(path)]
            if watch is not None:
                arguments = [sys.executable, "-c", WATCHED, str(path), *map(str, watch)]
            process = await asyncio.create_subprocess_exec(*arguments, stderr=asyncio.subprocess.PIPE)
            router = Router(process, session)
            stack.push_async_callback(router.close)
            return router

        yield run


async def test_deaths_cost_what_they_must_and_no_more(start: Start, workers: list[MockWorker]) -> None:
    router = await start(shutdown_drain_secs=1, shutdown_grace_secs=20)
    routing, first, _ = pids = await router.listening()
    assert (await router.get("/readyz"))[0] == 200
    models = json.loads((await router.get("/v1/models"))[1])["data"]
    assert [(model["id"], model["max_model_len"] > 0) for model in models] == [(MODEL, True)]
    await settles(router.tokens_compared, {"equal": len(workers)})  # by one of the data processes
    long = "a prefix that is long enough to be found again in the cache of the worker that has seen it " * 6
    for _ in range(50):
        status, reason = await router.chat(long)
        assert status == 200
        if reason == "cache_hit":
            break
    assert reason == "cache_hit"
    answers = await asyncio.gather(*(router.chat(f"hello {number}") for number in range(10)))
    assert {status for status, _ in answers} == {200}
    await settles(router.counted, router.sent)  # whichever process carried them

    # A data process dies: its own requests are lost, the other's go on, and their load is as ever.
    for worker in workers:
        worker.gate.close()
    held = [asyncio.create_task(router.chat(f"held {number}")) for number in range(20)]
    await settles(router.inflight, 20)
    os.kill(first, signal.SIGKILL)
    await router.until(lambda: router.said("process died, restarting it", name="data-0"), "death noticed")
    await router.until(lambda: any(task.done() for task in held), "its clients know")

    # The routing process dies too: nobody loses anything.
    os.kill(routing, signal.SIGKILL)
    await router.until(
        lambda: router.said("routing process unavailable: this process decides by least load", process="data-1"),
        "away is noticed",
    )
    probes = asyncio.gather(*(router.get(path) for path in ("/healthz", "/readyz") for _ in range(12)))
    alone = asyncio.gather(*(router.chat(f"alone {number}") for number in range(16)))
    await router.until(lambda: sum(worker.gate.waiting for worker in workers) > 0, "sent on")
    for worker in workers:
        worker.gate.open()
    ended = await asyncio.gather(*held, return_exceptions=True)
    assert all(one[0] == 200 for one in ended if not isinstance(one, BaseException))
    assert 0 < sum(isinstance(one, aiohttp.ClientError) for one in ended) < 20, "both had some of them"
    answers = await alone
    assert {status for status, _ in answers} == {200}
    assert Counter(reason for _, reason in answers)["routing_unavailable"] > 0
    probed = await probes
    assert {status for status, _ in probed[:12]} == {200}
    assert any(status == 503 and b"routing process" in body for status, body in probed[12:])

    # Both come back.
    await settles(lambda: ready(router), 200)
    assert await router.inflight() == 0
    assert (await router.chat(long))[1] != "routing_unavailable"
    pids += [line["data_pid"] for line in router.said("data process connected")]

    # The end: ready no more, but what has been accepted is answered.
    for worker in workers:
        worker.gate.close()
    last = asyncio.create_task(router.chat("last"))
    await router.until(lambda: sum(worker.gate.waiting for worker in workers) == 1, "sent on")
    router.process.send_signal(signal.SIGTERM)
    await settles(lambda: ready(router), 503)
    assert (await router.get("/healthz"))[0] == 200
    await router.until(lambda: not_listening(router), "no longer listening")
    for worker in workers:
        worker.gate.open()
    assert (await last)[0] == 200
    assert await asyncio.wait_for(router.process.wait(), 120) == 0
    assert not [pid for pid in pids if alive(pid)]
    assert "Traceback" not in router.text
    assert router.said("data process disconnected", leases_ended=0)


async def test_each_data_process_renders_with_the_models_defaults(
    start: Start, tmp_path: pathlib.Path, workers: list[MockWorker]
) -> None:
    template = tmp_path / "thinks.jinja"
    template.write_text("{% for m in messages %}<{{ m.content }}>{% endfor %}{{ style }} {{ enable_thinking }}")
    defaults: dict[str, Any] = {"enable_thinking": False, "style": "terse"}
    engine = ModelTokenizer.load(EMBEDDED_TOKENIZER_PATH, str(template), default_chat_template_kwargs=defaults)
    for worker in workers:
        worker.tokenizer = engine
    router = await start(model={"chat_template": str(template), "default_chat_template_kwargs": defaults})
    await router.listening()
    await settles(router.tokens_compared, {"equal": len(workers)})
    for number in range(12):  # both data processes, in all likelihood
        body = {"messages": [{"role": "user", "content": str(number)}], "chat_template_kwargs": {"style": "wordy"}}
        status, answer = await router.post("/v1/tokenize", {"model": MODEL, **body})
        assert (status, json.loads(answer)["tokens"]) == (200, list(await engine.encode_chat(body)))


async def test_a_routing_process_that_hangs_explains_nothing_and_holds_nobody_up(start: Start) -> None:
    router = await start()
    routing, *_ = await router.listening()
    for _ in range(8):  # both data processes, in all likelihood
        status, told = await router.explain()
        assert (status, told["model"], len(told["candidates"])) == (200, MODEL, 2)
    os.kill(routing, signal.SIGSTOP)
    try:
        answers = await asyncio.gather(*(router.chat(f"hello {number}") for number in range(16)))
        assert {status for status, _ in answers} == {200}
        began = time.monotonic()
        told = await asyncio.gather(*(router.explain(f"hello {number}") for number in range(16)))
        assert time.monotonic() - began < 20
        assert {(status, answer["error"]["code"]) for status, answer in told} == {(503, "routing_unavailable")}
    finally:
        os.kill(routing, signal.SIGCONT)
    await settles(lambda: explained(router), {200})
    await settles(router.inflight, 0)


async def test_a_process_that_hangs_is_started_again(start: Start, workers: list[MockWorker]) -> None:
    router = await start(watch=(0.2, 10))
    routing, first, second = await router.listening()
    for pid in (routing, first):  # not for long enough
        os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(0.6)
    for pid in (routing, first):
        os.kill(pid, signal.SIGCONT)
    await settles(lambda: explained(router), {200})
    everybody = [router.process.pid, routing, first, second]
    for pid in everybody:  # long enough, but the supervisor too
        os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(2.5)
    for pid in everybody:
        os.kill(pid, signal.SIGCONT)
    await settles(lambda: explained(router), {200})
    assert await restarts(router) == {}

    # The routing process: meanwhile requests are decided without it, and none is lost.
    for worker in workers:
        worker.gate.close()
    held = [asyncio.create_task(router.chat(f"held {number}")) for number in range(8)]
    await settles(router.inflight, 8)
    os.kill(routing, signal.SIGSTOP)
    await router.until(lambda: router.said("process hangs, killing it", name="routing", pid=routing), "noticed")
    for worker in workers:
        worker.gate.open()
    assert {status for status, _ in await asyncio.gather(*held)} == {200}
    await settles(lambda: ready(router), 200)
    assert not alive(routing)
    assert await restarts(router) == {("routing", "hung"): 1}
    await settles(router.inflight, 0)
    await router.until(lambda: len(router.said("data process connected", data_process=0)) == 2, "it has joined again")

    # A data process; and what the routing process shows outlives it.
    os.kill(first, signal.SIGSTOP)
    await router.until(lambda: router.said("process hangs, killing it", name="data-0", pid=first), "noticed")
    await router.until(lambda: len(router.said("data process connected", data_process=0)) == 3, "it is back")
    assert await restarts(router) == {("routing", "hung"): 1, ("data-0", "hung"): 1}
    os.kill(second, signal.SIGKILL)
    await settles(lambda: restarts(router), {("routing", "hung"): 1, ("data-0", "hung"): 1, ("data-1", "died"): 1})
    assert {status for status, _ in await asyncio.gather(*(router.chat() for _ in range(8)))} == {200}
    router.process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(router.process.wait(), 120) == 0
    assert "Traceback" not in router.text


async def restarts(router: Router) -> dict[tuple[str, str], int]:
    """By /metrics: process and cause."""
    status, text = await router.get("/metrics")
    line = re.compile(r'sgl_router_process_restarts_total\{cause="(\w+)",process="([\w-]+)"\} (\d+)')
    assert status == 200
    return {(process, cause): int(count) for cause, process, count in line.findall(text.decode()) if int(count)}


async def explained(router: Router) -> set[int]:
    return {status for status, _ in await asyncio.gather(*(router.explain() for _ in range(8)))}


async def ready(router: Router) -> int:
    return (await router.get("/readyz"))[0]


def not_listening(router: Router) -> bool:
    port = int(router.url.rpartition(":")[2])
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


async def test_nothing_outlives_a_killed_supervisor(start: Start) -> None:
    router = await start()
    pids = await router.listening()
    assert all(alive(pid) for pid in pids)
    router.process.kill()
    await router.process.wait()
    await settles(lambda: none_alive(pids), True)


async def none_alive(pids: list[int]) -> bool:
    return not any(alive(pid) for pid in pids)


async def test_a_port_in_use_is_a_clear_error(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        router = await start(port=other.getsockname()[1])
        assert await asyncio.wait_for(router.process.wait(), 120) == 2
        await router._reading
    assert "server.host, server.port: cannot listen on" in router.text
    assert "Traceback" not in router.text


async def test_a_process_that_cannot_start_is_a_clear_error(start: Start, tmp_path: pathlib.Path) -> None:
    (tmp_path / "empty").mkdir()
    router = await start(str(tmp_path / "empty"))
    assert await asyncio.wait_for(router.process.wait(), 120) == 2
    await router._reading
    assert "models[0].tokenizer_path " in router.text
    assert "was destroyed" not in router.text
    assert "Traceback" not in router.text


async def test_a_second_signal_leaves_at_once_and_nothing_behind(start: Start) -> None:
    router = await start(shutdown_drain_secs=60)
    pids = await router.listening()
    told = pathlib.Path(f"/proc/{pids[0]}/cmdline").read_bytes().decode().split("\0")
    folder = pathlib.Path(told[told.index("--folder") + 1])
    assert folder.is_dir()
    router.process.send_signal(signal.SIGTERM)
    await router.until(lambda: router.said("signal received, draining"), "draining")
    router.process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(router.process.wait(), 120) == 128 + signal.SIGTERM
    await settles(lambda: none_alive(pids), True)
    assert not folder.exists()


async def test_each_process_has_its_share_of_bodies_and_routes_one_spelling(start: Start) -> None:
    router = await start(max_body_bytes=1 << 20, max_buffered_bytes=4 << 20)
    await router.listening()
    await settles(lambda: ready(router), 200)
    host, _, port = router.url.removeprefix("http://").partition(":")
    async with contextlib.AsyncExitStack() as stack:

        async def begun(head: str) -> bytes:
            """The status line; nothing where the body is waited for."""
            reader, writer = await asyncio.open_connection(host, int(port))
            stack.callback(writer.close)
            writer.write(head.encode())
            return (await reader.readline()).rstrip()

        upload = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nContent-Length: {1 << 20}\r\n\r\nx"
        uploads = [asyncio.ensure_future(begun(upload)) for _ in range(12)]
        refused = b"HTTP/1.1 503 Service Unavailable"
        # Which process a connection comes to is the system's to say: no more than one body in each of them.
        await router.until(lambda: sum(one.done() for one in uploads) >= 10, "ten are refused")
        assert {one.result() for one in uploads if one.done()} == {refused}
        assert (await router.chat())[0] == 200
        for path in ("/%69nternal/kv_snapshot", "//internal/kv_snapshot", "http://a/internal/kv_snapshot"):
            assert await begun(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n") == b"HTTP/1.1 404 Not Found"
        two = "GET /workers HTTP/1.1\r\nHost: a\r\nAuthorization: a\r\nAuthorization: b\r\n\r\n"
        assert await begun(two) == b"HTTP/1.1 400 Bad Request"
        for one in uploads:
            one.cancel()
    await settles(lambda: refusals(router), 10)


async def refusals(router: Router) -> int:
    text = (await router.get("/metrics"))[1].decode()
    found = re.search(r'^sgl_router_errors_total\{code="overloaded"\} (\d+)', text, re.MULTILINE)
    return 0 if found is None else int(found[1])
