from __future__ import annotations

import asyncio

import pytest
import zmq

from sgl_router.kv_events.subscriber import Subscriber, make_context


class TwoAddresses(zmq.Socket):
    """To which `both.test` is a name with an address of either kind: libzmq dials the IPv6 one, where it may."""

    def connect(self, address: str):
        return super().connect(address.replace("both.test", "[::1]" if self.get(zmq.IPV6) else "127.0.0.1"))


@pytest.fixture
async def setup():
    context = make_context()
    context._socket_class = TwoAddresses
    subscribers: list[Subscriber] = []
    seen: list[list[bytes]] = []
    news = asyncio.Event()
    links: list[bool] = []

    def readable(subscriber: Subscriber) -> None:
        while (parts := subscriber.receive()) is not None:
            seen.append(parts)
        news.set()

    def connection(subscriber: Subscriber, connected: bool) -> None:
        links.append(connected)
        news.set()

    def subscribe(endpoint: str, topic: str = "kv", limit: int = 1000) -> Subscriber:
        made = Subscriber(
            context,
            endpoint,
            topic,
            receive_high_water_mark=100,
            max_message_bytes=limit,
            readable=readable,
            connection=connection,
        )
        subscribers.append(made)
        return made

    async def until(condition) -> None:
        while not condition():
            news.clear()
            await asyncio.wait_for(news.wait(), 10)

    yield subscribe, seen, links, until
    for one in subscribers:
        one.close()
        one.close()
    context.term()


def publisher(port: int = 0):
    context = zmq.Context()
    socket = context.socket(zmq.XPUB)
    socket.linger = 0
    if port:
        socket.bind(f"tcp://127.0.0.1:{port}")
    else:
        port = socket.bind_to_random_port("tcp://127.0.0.1")
    return context, socket, port


async def subscription(socket) -> None:
    while True:
        try:
            socket.recv(zmq.NOBLOCK)
            return
        except zmq.Again:
            await asyncio.sleep(0.005)


async def test_it_receives_its_topic_and_nothing_else(setup) -> None:
    subscribe, seen, links, until = setup
    context, socket, port = publisher()
    subscribe(f"tcp://127.0.0.1:{port}")
    await subscription(socket)
    socket.send_multipart([b"other", b"1", b"x"])
    socket.send_multipart([b"kv", b"2", b"y"])
    await until(lambda: seen)
    assert seen == [[b"kv", b"2", b"y"]]
    assert links == [True]
    context.destroy(linger=0)


async def test_a_burst_larger_than_one_wakeup_arrives_whole(setup) -> None:
    subscribe, seen, _, until = setup
    context, socket, port = publisher()
    subscribe(f"tcp://127.0.0.1:{port}")
    await subscription(socket)
    for number in range(80):
        socket.send_multipart([b"kv", str(number).encode(), b""])
    await until(lambda: len(seen) == 80)
    assert [parts[1] for parts in seen] == [str(number).encode() for number in range(80)]
    context.destroy(linger=0)


async def test_it_reconnects_on_its_own_and_says_so(setup) -> None:
    subscribe, seen, links, until = setup
    context, socket, port = publisher()
    subscribe(f"tcp://127.0.0.1:{port}")
    await subscription(socket)
    await until(lambda: links == [True])
    context.destroy(linger=0)
    await until(lambda: links == [True, False])
    context, socket, _ = publisher(port)
    await subscription(socket)
    socket.send_multipart([b"kv", b"1", b"again"])
    await until(lambda: seen)
    assert links == [True, False, True]
    context.destroy(linger=0)


async def test_a_message_over_the_limit_costs_the_connection_not_the_router(setup) -> None:
    subscribe, seen, links, until = setup
    context, socket, port = publisher()
    subscribe(f"tcp://127.0.0.1:{port}", limit=1000)
    await subscription(socket)
    await until(lambda: links == [True])
    socket.send_multipart([b"kv", b"1", b"x" * 5000])
    await until(lambda: False in links)
    assert seen == []
    context.destroy(linger=0)


async def test_a_name_with_two_addresses_is_reached_where_only_ipv4_listens(setup) -> None:
    subscribe, _, links, until = setup
    context, socket, port = publisher()
    subscriber = subscribe(f"tcp://both.test:{port}")
    await subscription(socket)
    await until(lambda: links)
    assert (links, subscriber.ipv6) == ([True], False)  # a replay dials the same way
    context.destroy(linger=0)
