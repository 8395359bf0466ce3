from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from sgl_router.errors import ConnectFailed
from sgl_router.upstream import Deadline, UpstreamExchange, UpstreamPool
from sgl_router.upstream.host import Address

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def polite(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(ANSWER)


async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Its connections serve one request: the answer is given up."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")


@pytest.fixture
async def narrow():
    pool = UpstreamPool(max_connections=2)
    yield pool
    pool.close()


async def post(pool: UpstreamPool, url: str) -> UpstreamExchange:
    return await pool.open(url, b"POST", b"/", [], b"{}")


async def release(exchange: UpstreamExchange) -> None:
    with exchange:
        await exchange.read()


async def settled(*waiting: asyncio.Task) -> None:
    """Everything that can happen without the line moving has happened."""
    for _ in range(20):
        await asyncio.sleep(0.001)


def line(pool: UpstreamPool, url: str, length: int) -> list[asyncio.Task]:
    return [asyncio.create_task(post(pool, url)) for _ in range(length)]


@pytest.mark.parametrize("script", [polite, endless])
async def test_who_finds_all_connections_in_use_is_served_in_order(narrow, upstream, script) -> None:
    server = await upstream(script)
    held = [await post(narrow, server.url) for _ in range(2)]
    tasks = line(narrow, server.url, 5)
    await settled()
    assert not any(task.done() for task in tasks)
    served = []
    for task in tasks:
        await release(held.pop(0))
        held.append(await asyncio.wait_for(asyncio.shield(task), 120))
        served.append([other.done() for other in tasks].index(False) if not all(t.done() for t in tasks) else 5)
    assert served == [1, 2, 3, 4, 5]
    for exchange in held:
        await release(exchange)
    assert server.connections == (2 if script is polite else 7)


@pytest.mark.parametrize("script", [polite, endless])
async def test_who_gives_up_waiting_takes_nothing_along(narrow, upstream, script) -> None:
    server = await upstream(script)
    held = [await post(narrow, server.url) for _ in range(2)]
    first, second, third = line(narrow, server.url, 3)
    await settled()
    first.cancel()
    await settled()
    assert len(narrow._addresses[server.url].waiting) == 2
    await release(held[0])
    await release(await asyncio.wait_for(second, 120))
    await release(await asyncio.wait_for(third, 120))
    assert first.cancelled()


async def test_a_turn_that_came_too_late_goes_to_the_next(narrow, upstream) -> None:
    server = await upstream(polite)
    held = [await post(narrow, server.url) for _ in range(2)]
    first, second = line(narrow, server.url, 2)
    await settled()
    for exchange in held[:1]:
        await release(exchange)  # the connection is the first one's now ...
    first.cancel()  # ... who does not want it any more
    await release(await asyncio.wait_for(second, 120))
    assert server.connections == 2


async def test_waiting_counts_as_connecting(narrow, upstream) -> None:
    server = await upstream(polite)
    held = [await post(narrow, server.url) for _ in range(2)]

    async def impatient() -> None:
        with Deadline() as deadline:
            await narrow.open(server.url, b"POST", b"/", [], b"", deadline=deadline, connect_secs=0.02, answer_secs=30)

    with pytest.raises(ConnectFailed, match=r"within 0\.02 s"):
        await asyncio.wait_for(impatient(), 120)
    for exchange in held:
        await release(exchange)
    await release(await post(narrow, server.url))
    assert server.connections == 2


async def failing(attempt: Awaitable[UpstreamExchange]) -> None:
    with pytest.raises(ConnectFailed):
        await attempt


async def test_attempts_that_fail_or_are_given_up_leave_their_place(narrow, upstream) -> None:
    server = await upstream(polite)
    dead = "http://127.0.0.1:1"
    await asyncio.gather(*[failing(post(narrow, dead)) for _ in range(20)])
    assert narrow._addresses[dead].open == 0
    for steps in range(12):
        task = asyncio.create_task(post(narrow, server.url))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        [result] = await asyncio.gather(task, return_exceptions=True)
        if isinstance(result, UpstreamExchange):
            result.connection.close()
    for _ in range(50):
        if not narrow._addresses[server.url].open:
            break
        await asyncio.sleep(0.01)
    assert narrow._addresses[server.url].open == 0
    for _ in range(3):
        await release(await asyncio.wait_for(post(narrow, server.url), 120))


async def test_a_place_that_comes_free_too_late_goes_to_the_next() -> None:
    address = Address("http://worker", 1)
    assert await address.place() is None
    first, second = (asyncio.create_task(address.place()) for _ in range(2))
    await settled()
    address.left()
    first.cancel()
    assert await asyncio.wait_for(second, 120) is None
    assert address.open == 1
    address.left()
    assert address.open == 0
