"""What a router that is short of descriptors learns of its workers: nothing."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from sgl_router.discovery import Added
from sgl_router.upstream.control import FetchError, fetch
from sgl_router.upstream.fault import WorkerFault
from sgl_router.workers import HealthState
from tests.workers.test_manager import Fleet


class ShortConnector(aiohttp.TCPConnector):
    """Fails with `code`, where that is set, as aiohttp does."""

    code: int | None = None
    failed = 0

    async def _create_connection(self, req: Any, traces: Any, timeout: Any) -> Any:
        if self.code is not None:
            self.failed += 1
            raise aiohttp.ClientConnectorError(req.connection_key, OSError(self.code, os.strerror(self.code)))
        return await super()._create_connection(req, traces, timeout)


@pytest.fixture
async def connector() -> ShortConnector:
    return ShortConnector(limit=0, force_close=True)


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        (errno.EMFILE, WorkerFault.ROUTER_SHORT),
        (errno.ENFILE, WorkerFault.ROUTER_SHORT),
        (errno.ENOBUFS, WorkerFault.ROUTER_SHORT),
        # One worker cannot be reached from here for as long as it lasts, and others can.
        (errno.EADDRNOTAVAIL, WorkerFault.CONNECT_FAILED),
        (errno.ECONNREFUSED, WorkerFault.CONNECT_FAILED),
    ],
)
async def test_whose_fault_it_is(connector: ShortConnector, code: int, fault: WorkerFault) -> None:
    connector.code = code
    async with aiohttp.ClientSession(connector=connector) as session:
        with pytest.raises(FetchError) as raised:
            await fetch(session, "http://127.0.0.1:1", "/ready", api_key=None, timeout_secs=5, max_bytes=100)
    assert raised.value.fault is fault
    assert "127.0.0.1" not in str(raised.value)


async def test_a_probe_that_cannot_be_sent_is_no_failed_probe(
    connector: ShortConnector, make_worker: Callable[[], Any], until: Callable[..., Awaitable[None]]
) -> None:
    worker = make_worker()
    await worker.listen()
    session = aiohttp.ClientSession(connector=connector)
    fleet = Fleet(session_factory=lambda: session)
    await fleet.manager.start()
    try:
        fleet.discovery.say(Added(worker.url))
        await until(fleet.is_in(worker.url, HealthState.HEALTHY), "healthy")
        connector.code = errno.EMFILE
        await until(lambda: connector.failed >= 20, "many probes that could not be sent")
        assert fleet.worker(worker.url).health is HealthState.HEALTHY
        asked = worker.calls["/server_info"]
        connector.code = None
        before = worker.calls["/ready"]
        await until(lambda: worker.calls["/ready"] >= before + 3, "probes again")
        assert worker.calls["/server_info"] == asked, "nothing made it suspect"
        connector.code = errno.ECONNREFUSED
        await until(fleet.is_in(worker.url, HealthState.UNHEALTHY), "unhealthy")
    finally:
        await fleet.manager.stop()


async def test_a_worker_is_asked_again_when_descriptors_are_back(
    connector: ShortConnector, make_worker: Callable[[], Any], until: Callable[..., Awaitable[None]]
) -> None:
    worker = make_worker()
    await worker.listen()
    connector.code = errno.EMFILE
    session = aiohttp.ClientSession(connector=connector)
    fleet = Fleet(session_factory=lambda: session)
    await fleet.manager.start()
    try:
        fleet.discovery.say(Added(worker.url))
        await until(fleet.pending_with(worker.url, WorkerFault.ROUTER_SHORT), "told why")
        connector.code = None
        await until(fleet.is_in(worker.url, HealthState.HEALTHY), "healthy")
    finally:
        await fleet.manager.stop()
