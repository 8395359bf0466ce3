"""Pooled clients through a SIGTERM: they are told to leave, and leave, before the port closes."""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.e2e.conftest import Client, MakeRouter, MakeWorkers, Router

pytestmark = pytest.mark.timeout(400)

CLIENTS = 150
PROCESSES = [1, 2]


class Pooled:
    """A client that keeps its connection until a response says otherwise, and then opens another, as pools do.

    `lost`: requests that were sent and met the end of the connection. `refused`: the port is closed.
    """

    def __init__(self, router: Router, path: str | None = None) -> None:
        self.router = router
        self.path = path
        self.client: Client | None = None
        self.served = self.lost = self.told = 0
        self.refused = False

    async def run(self) -> None:
        while not self.refused:
            if self.client is None:
                try:
                    self.client = await self.router.open()
                except OSError:
                    self.refused = True
                    return
            reply = await (self.client.chat() if self.path is None else self.client.get(self.path))
            if reply is None:
                self.lost += 1
                self.client = None
                continue
            assert reply.status == 200 or self.path == "/readyz"
            self.served += 1
            if reply.closes:
                self.told += 1
                self.client.close()
                self.client = None
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("processes", PROCESSES)
async def test_no_client_of_a_pool_loses_a_request(
    make_router: MakeRouter, make_workers: MakeWorkers, processes: int
) -> None:
    workers = await make_workers(2)
    router = await make_router([worker.url for worker in workers], shutdown_drain_secs=50, processes=processes)
    await router.listening()
    pools = [Pooled(router) for _ in range(CLIENTS)]
    probes = [Pooled(router, path) for path in ("/v1/models", "/healthz", "/readyz", "/metrics")]
    running = [asyncio.create_task(one.run()) for one in pools + probes]
    await router.until(lambda: all(one.served for one in pools + probes), "each has been served")
    assert not any(one.told for one in pools)
    router.process.send_signal(signal.SIGTERM)
    await router.until(lambda: all(one.told for one in pools), "each has been told to leave")
    lost = sum(one.lost for one in pools + probes)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    assert lost == 0
    router.process.send_signal(signal.SIGTERM)  # the rest of the drain is not waited for
    assert await router.ends() == 128 + signal.SIGTERM
    assert "Traceback" not in router.text


async def test_a_stream_through_the_drain_ends_whole(make_router: MakeRouter, make_workers: MakeWorkers) -> None:
    """It began before the signal and ends after the port has closed; a pooled client that is idle sees the close."""
    [worker] = await make_workers(1)
    router = await make_router([worker.url], shutdown_drain_secs=0.5, shutdown_grace_secs=60)
    await router.listening()
    idle = await router.open()
    assert await idle.chat() is not None
    worker.gate.close()
    client = await router.open()
    client.send_chat(stream=True)
    await worker.gate.arrived(1, timeout=120)
    router.process.send_signal(signal.SIGTERM)
    assert await idle.read() is None
    with pytest.raises(OSError):
        await router.open()
    worker.gate.open()
    reply = await client.read()
    assert reply is not None
    assert (reply.status, reply.closes) == (200, True)
    assert reply.body.endswith(b"data: [DONE]\n\n")
    assert await router.ends() == 0
