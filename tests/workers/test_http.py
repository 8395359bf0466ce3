from __future__ import annotations

import asyncio

import pytest

from sgl_router.upstream.control import FetchError, control_session, fetch
from sgl_router.upstream.fault import WorkerFault


async def test_a_port_that_speaks_no_http() -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f")  # how a ZMQ socket says hello
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, control_session() as session:
        with pytest.raises(FetchError) as caught:
            await fetch(session, f"http://127.0.0.1:{port}", "/ready", api_key=None, timeout_secs=5, max_bytes=10)
    assert caught.value.fault in (WorkerFault.MALFORMED, WorkerFault.CONNECTION_LOST)
    assert str(port) not in str(caught.value)


async def test_the_environments_proxy_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:1")
    async with control_session() as session:
        assert not session.trust_env
