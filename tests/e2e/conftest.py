"""The router as a process of its own, mock workers in this one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import pathlib
import resource
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from sgl_router.lab.mock_worker import EMBEDDED_TOKENIZER_PATH, MockWorker, MockWorkerConfig, shared_tokenizer

MODEL = "mock-model"
CHAT = "/v1/chat/completions"


class Reply:
    """One response, as it came. `headers`: names in lower case."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def code(self) -> str | None:
        """The router's error code."""
        return self.headers.get("x-router-error-code")

    @property
    def closes(self) -> bool:
        return self.headers.get("connection", "") == "close"


class Client:
    """One connection, one request after the other. None for a response: the connection ended instead."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def get(self, path: str) -> Reply | None:
        self.writer.write(f"GET {path} HTTP/1.1\r\nHost: router\r\n\r\n".encode())
        return await self.read()

    async def chat(self, content: str = "hello", **extra: Any) -> Reply | None:
        self.send_chat(content, **extra)
        return await self.read()

    def send_chat(self, content: str = "hello", **extra: Any) -> None:
        message = {"role": "user", "content": content}
        body = json.dumps({"model": MODEL, "messages": [message], "max_tokens": 2, **extra}).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: router\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        self.writer.write(head.encode() + b"\r\n\r\n" + body)

    async def read(self) -> Reply | None:
        try:
            status, headers = await self.read_head()
            return Reply(status, headers, await self.read_body(headers))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def read_head(self) -> tuple[int, dict[str, str]]:
        line, *fields = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")[:-4].split("\r\n")
        headers = {name.lower(): value for name, _, value in (one.partition(": ") for one in fields)}
        return int(line.split()[1]), headers

    async def read_body(self, headers: dict[str, str]) -> bytes:
        if "content-length" in headers:
            return await self.reader.readexactly(int(headers["content-length"]))
        if "transfer-encoding" not in headers:
            return await self.reader.read()
        body = b""
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            body += (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readexactly(2)
        return body

    def close(self) -> None:
        self.writer.close()


class Router:
    """`sgl-router --config FILE` as a child, and everything it has said."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[dict[str, Any]] = []
        self.text = ""
        self.port = 0
        self._clients: list[Client] = []
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.text += line.decode()
            with contextlib.suppress(ValueError):
                self.lines.append(json.loads(line))

    def said(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """Log lines whose event begins like this."""
        return [one for one in self.lines if one["event"].startswith(event) and fields.items() <= one.items()]

    async def until(self, condition: Callable[[], Any], what: str, within: float = 120.0) -> None:
        deadline = asyncio.get_running_loop().time() + within
        while not condition():
            assert self.process.returncode is None, f"ended before {what}:\n{self.text[-3000:]}"
            assert asyncio.get_running_loop().time() < deadline, f"not {what}:\n{self.text[-3000:]}"
            await asyncio.sleep(0.01)

    async def listening(self) -> dict[str, Any]:
        """The line that says so, when every model has a healthy worker."""
        await self.until(lambda: self.said("router listening"), "listening")
        [line] = self.said("router listening")
        self.port = int(line["url"].rpartition(":")[2])
        await settles(self.ready, True)
        return line

    async def ready(self) -> bool:
        async with self.asking() as client:
            reply = await client.get("/readyz")
        return reply is not None and reply.status == 200

    async def open(self) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self._clients.append(client)
        return client

    @contextlib.asynccontextmanager
    async def asking(self) -> AsyncIterator[Client]:
        client = await self.open()
        try:
            yield client
        finally:
            client.close()

    async def get(self, path: str) -> Reply:
        """On a connection of its own."""
        async with self.asking() as client:
            reply = await client.get(path)
        assert reply is not None, self.text[-3000:]
        return reply

    async def chat(self, content: str = "hello", **extra: Any) -> Reply | None:
        """On a connection of its own."""
        async with self.asking() as client:
            return await client.chat(content, **extra)

    async def workers(self) -> list[dict[str, Any]]:
        return list(json.loads((await self.get("/workers")).body)["workers"])

    async def ends(self, within: float = 120.0) -> int:
        status = await asyncio.wait_for(self.process.wait(), within)
        await self._reading
        return status

    async def close(self) -> None:
        for client in self._clients:
            client.close()
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


MakeRouter = Callable[..., Awaitable[Router]]
MakeWorkers = Callable[..., Awaitable[list[MockWorker]]]


@pytest.fixture
async def make_workers() -> AsyncIterator[MakeWorkers]:
    """`await make_workers(2, dp_size=4)`: at once, without simulated durations."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(count: int = 1, **settings: Any) -> list[MockWorker]:
            tokenizer = shared_tokenizer(EMBEDDED_TOKENIZER_PATH)
            config = MockWorkerConfig.instant(model_id=MODEL, **settings)
            made = [MockWorker(config, tokenizer=tokenizer) for _ in range(count)]
            for worker in made:
                await stack.enter_async_context(worker)
            return made

        yield make


@pytest.fixture
async def make_router(tmp_path: pathlib.Path) -> AsyncIterator[MakeRouter]:
    """`await make_router([url, ...], files=256, processes=2, ...)`. `files`: the soft and the hard limit of open files;
    other keywords are of the section `server`, `over` are other sections."""
    async with contextlib.AsyncExitStack() as stack:

        async def make(
            urls: list[str],
            *,
            files: int | None = None,
            over: dict[str, Any] | None = None,
            environment: dict[str, str] | None = None,
            **server: Any,
        ) -> Router:
            settings = {
                "server": {"port": 0, "shutdown_drain_secs": 0, **server},
                "observability": {"log_format": "json"},
                "models": [{"id": MODEL, "tokenizer_path": EMBEDDED_TOKENIZER_PATH}],
                "discovery": {"static_urls": {"urls": urls}},
                "health": {"interval_secs": 0.2},
                **(over or {}),
            }
            path = tmp_path / "config.yaml"
            path.write_text(json.dumps(settings))  # JSON is YAML
            limit = (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))) if files is not None else None
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "sgl_router", "--config", str(path),
                stderr=asyncio.subprocess.PIPE, preexec_fn=limit, env=environment, limit=1 << 20,
            )  # fmt: skip
            router = Router(process)
            stack.push_async_callback(router.close)
            return router

        yield make
