from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import uvloop

from sgl_router.errors import ConnectFailed
from sgl_router.upstream import Deadline, UpstreamPool


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for `localhost` that vouches for itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        (
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost "
            f"-addext subjectAltName=DNS:localhost -keyout {key} -out {cert}"
        ).split(),
        check=True,
        capture_output=True,
    )
    return cert, key


@contextlib.asynccontextmanager
async def worker(certificate: tuple[Path, Path]) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def ask(pool: UpstreamPool, url: str) -> int:
    with await pool.open(url, b"POST", b"/", [], b"") as exchange:
        size = 0
        while (piece := await exchange.read()) is not None:
            size += len(piece)
        return size


def on(loop: Callable[[], asyncio.AbstractEventLoop], job) -> None:  # type: ignore[no-untyped-def]
    running = loop()
    try:
        running.run_until_complete(asyncio.wait_for(job(), 120))
    finally:
        running.close()


BOTH = pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])


@BOTH
def test_a_worker_with_a_certificate_that_is_trusted(loop, certificate, monkeypatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))

    async def job() -> None:
        pool = UpstreamPool()
        async with worker(certificate) as port:
            assert await ask(pool, f"https://localhost:{port}") == 100_000
            assert await ask(pool, f"https://localhost:{port}") == 100_000
            address = pool._addresses[f"https://localhost:{port}"]
            assert (address.open, len(address.idle)) == (1, 1)
        pool.close()

    on(loop, job)


@BOTH
@pytest.mark.parametrize("fault", ["untrusted", "another name", "no TLS"])
def test_nobody_else_is_talked_to(loop, certificate, monkeypatch, fault: str) -> None:
    if fault != "untrusted":
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))

    async def job() -> None:
        pool = UpstreamPool()
        async with worker(certificate) as port:
            plain = await asyncio.start_server(lambda reader, writer: writer.write(b"hello\r\n"), "127.0.0.1", 0)
            if fault == "no TLS":
                port = plain.sockets[0].getsockname()[1]
            url = f"https://{'127.0.0.1' if fault == 'another name' else 'localhost'}:{port}"
            with pytest.raises(ConnectFailed):
                await ask(pool, url)
            assert pool._addresses[url].open == 0
            plain.close()
        pool.close()

    on(loop, job)


@BOTH
def test_a_handshake_that_does_not_end_is_bounded_by_the_time_to_connect(loop) -> None:
    async def job() -> None:
        greeted, hung_up = asyncio.Event(), asyncio.Event()

        async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                while await reader.read(4096):
                    greeted.set()
            hung_up.set()
            writer.close()

        pool = UpstreamPool()
        server = await asyncio.start_server(mute, "127.0.0.1", 0)
        url = f"https://localhost:{server.sockets[0].getsockname()[1]}"
        connect_secs = 0.1
        while not greeted.is_set():  # a busy machine may need longer than that to say its first word
            with pytest.raises(ConnectFailed):
                with Deadline() as deadline:
                    await pool.open(
                        url, b"POST", b"/", [], b"", deadline=deadline, connect_secs=connect_secs, answer_secs=30
                    )
            assert pool._addresses[url].open == 0
            connect_secs *= 2
        await hung_up.wait()
        pool.close()
        server.close()

    on(loop, job)
