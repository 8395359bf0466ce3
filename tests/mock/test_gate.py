"""The door that holds requests."""

from __future__ import annotations

import asyncio

import pytest

from sgl_router.lab.mock_worker.gate import Gate


async def test_an_open_gate_lets_pass() -> None:
    await asyncio.wait_for(Gate().passage(), 1)


async def test_a_closed_gate_holds_until_opened() -> None:
    gate = Gate()
    gate.close()
    held = [asyncio.ensure_future(gate.passage()) for _ in range(3)]
    await gate.arrived(3)
    assert gate.waiting == 3
    assert not any(task.done() for task in held)
    gate.open()
    await asyncio.wait_for(asyncio.gather(*held), 1)
    assert gate.waiting == 0


async def test_who_gives_up_is_no_longer_counted() -> None:
    gate = Gate()
    gate.close()
    held = asyncio.ensure_future(gate.passage())
    await gate.arrived()
    held.cancel()
    await asyncio.wait([held])
    assert gate.waiting == 0


async def test_waiting_for_arrivals_is_bounded() -> None:
    with pytest.raises(asyncio.TimeoutError):
        await Gate().arrived(1, timeout=0.01)
