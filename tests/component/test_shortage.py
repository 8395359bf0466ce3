"""No descriptor for a request's connection to its worker: the router's own failure, and nobody else's."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import Any

import pytest

from sgl_router.workers import BreakerState

from .conftest import MakeRig


class Full:
    """In the place of the loop's `create_connection`: fails with `code` where that is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        self._connect = loop.create_connection
        self.code: int | None = None
        self.asked = 0
        monkeypatch.setattr(loop, "create_connection", self)

    async def __call__(self, *arguments: Any, **options: Any) -> Any:
        if self.code is None or "sock" in options:  # the client's, and probes
            return await self._connect(*arguments, **options)
        self.asked += 1
        raise OSError(self.code, os.strerror(self.code))


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EADDRNOTAVAIL])
async def test_requests_are_refused_and_no_worker_is_blamed(
    rig: MakeRig, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    router = await rig(2, model={"circuit_breaker": {"threshold": 3, "cool_down_secs": 60}})
    full = Full(monkeypatch)
    full.code = code
    for number in range(12):
        answer = await router.ask(f"question {number}")
        assert (answer.status, answer.error["code"]) == (503, "overloaded")
        assert answer.headers["retry-after"] == "1"
        assert "127.0.0.1" not in answer.body.decode()
    assert full.asked == 12, "each request was tried at one worker only"
    assert router.idle_load()
    breakers = [router.worker(number).breaker for number in range(2)]
    assert [(one.state, one.failures) for one in breakers] == [(BreakerState.CLOSED, 0)] * 2
    full.code = None
    assert [(await router.ask(f"again {number}")).status for number in range(6)] == [200] * 6
    text = (await router.get("/metrics")).body.decode()
    assert 'sgl_router_errors_total{code="overloaded"} 12' in text


async def test_a_half_open_breaker_gets_its_probe_back(rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    router = await rig(1, model={"circuit_breaker": {"threshold": 1, "cool_down_secs": 0.05}})
    full = Full(monkeypatch)
    breaker = router.worker(0).breaker
    full.code = errno.ECONNREFUSED
    assert (await router.ask()).status == 502
    assert breaker.state is BreakerState.OPEN
    full.code = errno.EMFILE
    loop = asyncio.get_running_loop()
    await router.until(lambda: breaker.would_allow(loop.time()), "the cool-down is over")
    for _ in range(3):
        assert (await router.ask()).error["code"] == "overloaded"
        assert breaker.state is BreakerState.HALF_OPEN
    full.code = None
    assert (await router.ask()).status == 200
    assert breaker.state is BreakerState.CLOSED
