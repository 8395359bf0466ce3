"""Connections that cannot be made for want of something on the router's own machine."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import Any

import pytest

from sgl_router.descriptors import Descriptors
from sgl_router.errors import ConnectFailed, Overloaded
from sgl_router.upstream import UpstreamPool

from .test_pool import answer, post, read_all, saying


class Machine:
    """Stands in for `create_connection` of the running loop: fails as often as it is told to, then connects."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        self._connect = loop.create_connection
        self.failures: list[OSError] = []
        self.asked = 0
        monkeypatch.setattr(loop, "create_connection", self)

    async def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.asked += 1
        if self.failures:
            raise self.failures.pop(0)
        return await self._connect(*arguments, **options)


@pytest.fixture
async def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL])
async def test_it_is_the_routers_own_failure(machine: Machine, pool: UpstreamPool, upstream: Any, code: int) -> None:
    server = await upstream(saying(answer()))
    machine.failures = [OSError(code, os.strerror(code))]
    with pytest.raises(Overloaded) as raised:
        await post(pool, server.url)
    assert (raised.value.status, raised.value.retry_after, raised.value.code.value) == (503, 1, "overloaded")
    assert machine.asked == 1
    assert pool._addresses[server.url].open == 0, "its place is given back"
    assert await read_all(await post(pool, server.url)) == b"ok"


async def test_a_worker_that_refuses_is_still_to_blame(machine: Machine, pool: UpstreamPool) -> None:
    machine.failures = [ConnectionRefusedError(errno.ECONNREFUSED, "refused")]
    with pytest.raises(ConnectFailed):
        await post(pool, "http://127.0.0.1:1")


async def test_an_idle_connection_to_another_worker_makes_room_once(
    machine: Machine, pool: UpstreamPool, upstream: Any
) -> None:
    idle, wanted = await upstream(saying(answer())), await upstream(saying(answer()))
    await read_all(await post(pool, idle.url))
    machine.failures = [OSError(errno.EMFILE, "full")]
    assert await read_all(await post(pool, wanted.url)) == b"ok"
    assert pool._addresses[idle.url].open == 0
    machine.failures = [OSError(errno.EMFILE, "full"), OSError(errno.EMFILE, "full")]
    pool._addresses[wanted.url].close_idle(float("inf"))
    with pytest.raises(Overloaded):
        await post(pool, idle.url)
    assert len(machine.failures) == 1, "there was nothing to close, so it was not tried again"


async def test_idle_connections_stay_within_the_budget(upstream: Any) -> None:
    budget = Descriptors(64)
    pool = UpstreamPool(descriptors=budget)
    servers = [await upstream(saying(answer())) for _ in range(budget.requests + 3)]
    try:
        for server in servers:
            assert await read_all(await post(pool, server.url)) == b"ok"
        assert sum(one.open for one in pool._addresses.values()) <= budget.requests
    finally:
        pool.close()


async def test_certificates_are_not_read_without_a_descriptor(
    pool: UpstreamPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sgl_router.upstream.pool.spare", lambda count: False)
    with pytest.raises(Overloaded):
        await post(pool, "https://127.0.0.1:1")
    assert pool._tls is None, "an empty context would be kept for all later connections"
    monkeypatch.undo()
    with pytest.raises(ConnectFailed):
        await post(pool, "https://127.0.0.1:1")
    assert pool._tls is not None
