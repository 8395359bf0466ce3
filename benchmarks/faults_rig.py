"""What the fault scenarios share: scripted workers, the router as a process of its own, and what it uses."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import resource
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

from sgl_router.lab.mock_worker import EMBEDDED_TOKENIZER_PATH

__all__ = ["MODEL", "PLAIN", "Router", "Script", "ScriptedWorker", "chat", "event_stream", "response", "router"]

MODEL = "mock-model"
REPOSITORY = Path(__file__).resolve().parent.parent

Script = Callable[["ScriptedWorker", bytes, asyncio.StreamWriter], Awaitable[None]]


def response(status: int, body: Any, *lines: str) -> bytes:
    """A whole JSON response."""
    data = json.dumps(body).encode()
    head = [f"HTTP/1.1 {status} X", "content-type: application/json", f"content-length: {len(data)}", *lines]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + data


def event_stream(*events: str) -> bytes:
    """A whole event stream, closed by its last chunk."""
    body = b"".join(f"data: {event}\n\n".encode() for event in events)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


PLAIN = response(
    200,
    {
        "id": "x",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6},
    },
)


class ScriptedWorker:
    """A worker without KV events that answers probes and gives every chat to a script. `chats` counts those it read."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.chats = 0
        self.url = ""

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=64 << 20)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def die(self) -> None:
        """As if the process were killed: the port and every connection are gone."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
                body = await reader.readexactly(int(length[1])) if length else b""
                if head.startswith(b"POST /v1/chat/completions"):
                    self.chats += 1
                    await self._script(self, body, writer)
                elif head.startswith(b"GET /ready"):
                    writer.write(response(200, {}))
                elif head.startswith(b"GET /v1/models"):
                    writer.write(response(200, {"data": [{"id": MODEL, "object": "model"}]}))
                else:
                    writer.write(response(404, {}))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()


class Router:
    """The daemon. `session` is a client with as many connections as it needs."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, session: aiohttp.ClientSession) -> None:
        self.process = process
        self.port = port
        self.session = session
        self.url = f"http://127.0.0.1:{port}"

    async def get(self, path: str) -> Any:
        async with self.session.get(self.url + path) as answer:
            return await (answer.json() if answer.content_type == "application/json" else answer.text())

    async def lag_over(self, secs: float) -> int:
        """Turns of the event loop that were late by more than `secs`, a bound of the histogram's buckets."""
        text = await self.get("/metrics")
        counts = dict(re.findall(r'sgl_router_event_loop_lag_seconds_bucket\{le="([^"]+)"\} ([0-9.]+)', text))
        return int(float(counts["+Inf"]) - float(counts[str(secs)]))

    def memory(self) -> tuple[float, float]:
        """Resident now and at the most, in MiB; the largest process of the router."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        now, peak = (re.search(rf"{key}:\s+(\d+) kB", status) for key in ("VmRSS", "VmHWM"))
        assert now is not None and peak is not None
        return int(now[1]) / 1024, int(peak[1]) / 1024


@contextlib.asynccontextmanager
async def router(urls: list[str], *, descriptors: int | None = None, **over: Any) -> AsyncIterator[Router]:
    """The daemon in front of `urls`, ready. `descriptors`: its limit. `model`, `server`: keys of these sections."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = {
        "server": {"port": port, "shutdown_drain_secs": 0, "shutdown_grace_secs": 1, **over.pop("server", {})},
        "models": [{"id": MODEL, "tokenizer_path": EMBEDDED_TOKENIZER_PATH, **over.pop("model", {})}],
        "discovery": {"static_urls": {"urls": urls}},
        "health": {"interval_secs": 1.0, "check_tokens": False},
        **over,
    }

    def limit() -> None:
        if descriptors is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(json.dumps(config))
        with (Path(folder) / "router.log").open("w") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "sgl_router",
                "--config",
                str(file),
                stderr=log,
                stdout=log,
                cwd=REPOSITORY,
                preexec_fn=limit,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            )
            connector = aiohttp.TCPConnector(limit=0)
            timeout = aiohttp.ClientTimeout(total=120)
            try:
                async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
                    made = Router(process, port, session)
                    await _ready(made, len(urls), Path(folder) / "router.log")
                    yield made
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()


async def _ready(made: Router, workers: int, log: Path) -> None:
    def said() -> str:
        return log.read_text()[-2000:]

    for _ in range(600):
        if made.process.returncode is not None:
            raise RuntimeError(f"the router ended with {made.process.returncode}: {said()}")
        with contextlib.suppress(aiohttp.ClientError):
            view = await made.get("/workers")
            healthy = [one for one in view.get("workers", ()) if one["health"] == "healthy"]
            if len(healthy) == workers:
                return
        await asyncio.sleep(0.05)
    raise RuntimeError(f"the router was not ready: {said()}")


async def chat(made: Router, text: str = "hello", **fields: Any) -> tuple[int, bytes]:
    """Status and body of one chat; 0 and nothing when the connection broke."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], **fields}
    try:
        async with made.session.post(made.url + "/v1/chat/completions", json=body) as answer:
            return answer.status, await answer.read()
    except (aiohttp.ClientError, asyncio.TimeoutError):
        return 0, b""
