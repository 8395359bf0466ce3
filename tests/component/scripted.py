"""A worker whose chat route does what a test says, byte by byte; everything else it leaves to a mock worker."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp

from sgl_router.lab.mock_worker import EMBEDDED_TOKENIZER_PATH, MockWorker, MockWorkerConfig, shared_tokenizer

CHAT = b"/v1/chat/completions"
Script = Callable[["Scripted", bytes, asyncio.StreamWriter], Awaitable[None]]


class Scripted:
    """`script(worker, body, writer)` runs for each chat, once the whole request has been read: an execution, and its
    body is kept. Returning keeps the connection alive. `dies_after`: it is reset when so much of a body has come."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.executed: list[bytes] = []
        self.dies_after: int | None = None
        self.url = ""
        self._server: asyncio.AbstractServer | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._mock: MockWorker | None = None
        self._session: aiohttp.ClientSession | None = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                method, path, *_ = head.split(b" ", 2)
                lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                length = int(lengths[0].split(b":")[1]) if lengths else 0
                if path == CHAT and self.dies_after is not None:
                    await reader.readexactly(self.dies_after)
                    self.die(reset=True)
                body = await reader.readexactly(length)
                if path == CHAT:
                    self.executed.append(body)
                    await self.script(self, body, writer)
                else:
                    await self._leave_to_mock(writer, method.decode(), path.decode(), body)
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError, aiohttp.ClientError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _leave_to_mock(self, writer: asyncio.StreamWriter, method: str, path: str, body: bytes) -> None:
        assert self._mock is not None and self._session is not None
        headers = {"content-type": "application/json"}
        async with self._session.request(method, self._mock.url + path, data=body, headers=headers) as reply:
            answer = await reply.read()
            head = f"HTTP/1.1 {reply.status} x\r\ncontent-type: {reply.content_type}\r\n"
            writer.write(f"{head}content-length: {len(answer)}\r\n\r\n".encode() + answer)

    def die(self, *, reset: bool) -> None:
        """As a killed process does: nobody listens, and every connection is closed."""
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            hang_up(writer, reset=reset)

    async def __aenter__(self) -> Scripted:
        tokenizer = shared_tokenizer(EMBEDDED_TOKENIZER_PATH)
        self._mock = await MockWorker(MockWorkerConfig.instant(model_id="mock-model"), tokenizer=tokenizer).__aenter__()
        self._session = aiohttp.ClientSession()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None and self._mock is not None and self._session is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await self._session.close()
        await self._mock.__aexit__(None, None, None)


def hang_up(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    """Close now: with a reset, or in good order."""
    if reset:
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


def whole(body: bytes, kind: str = "application/json", status: str = "200 OK", headers: str = "") -> bytes:
    """A response with its length."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


GOOD = whole(b'{"choices": [{"message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}]}')


def saying(response: bytes) -> Script:
    async def script(worker: Scripted, body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(response)

    return script


@contextlib.asynccontextmanager
async def fleet_of(*scripts: Script) -> AsyncIterator[list[Scripted]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Scripted(script)) for script in scripts]
