from __future__ import annotations

import asyncio
import socket as sockets
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
import zmq

from sgl_router.upstream import zmq_subscriber as module
from sgl_router.upstream.zmq_subscriber import Subscriber, make_context


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

    def subscribe(endpoint: str, topic: str = "kv", limit: int = 1000, **more: Any) -> Subscriber:
        made = Subscriber(
            context,
            endpoint,
            topic,
            receive_high_water_mark=100,
            max_message_bytes=limit,
            readable=readable,
            connection=connection,
            **more,
        )
        subscribers.append(made)
        return made

    async def until(condition) -> None:
        while not condition():
            news.clear()
            await asyncio.wait_for(news.wait(), 120)

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


async def lines(logs: list[Any], event: str, number: int = 1) -> list[Any]:
    """Of the log, waited for."""
    deadline = asyncio.get_running_loop().time() + 120
    while len(found := [line for line in logs if line["event"] == event]) < number:
        assert asyncio.get_running_loop().time() < deadline, f"no line {event!r}: {logs}"
        await asyncio.sleep(0.01)
    return found


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Takes connections and never says a word: another protocol's port, or a proxy without anything behind it."""
    with sockets.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def refusing(silent_port: int) -> str:
    return "tcp://127.0.0.1:9"


def silent(silent_port: int) -> str:
    return f"tcp://127.0.0.1:{silent_port}"


def unknown(silent_port: int) -> str:
    return "tcp://no-such-host.invalid:5557"


@pytest.mark.parametrize("endpoint", [refusing, silent, unknown])
async def test_a_port_that_does_not_answer_is_told_of_once(
    setup, silent_port: int, endpoint: Callable[[int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_WATCHDOG_SECS", 0.1)
    subscribe, *_ = setup
    with structlog.testing.capture_logs() as logs:
        made = subscribe(endpoint(silent_port), of={"worker": "w-1", "dp_rank": 2}, unanswered_secs=0.2)
        (line,) = await lines(logs, "event port does not answer")
        attempts = 0
        opened = made._open

        def counted() -> None:
            nonlocal attempts
            attempts += 1
            opened()

        made._open = counted  # type: ignore[method-assign]
        for _ in range(1000):
            if attempts >= 2:
                break
            await asyncio.sleep(0.01)
    assert (line["log_level"], line["worker"], line["dp_rank"]) == ("warning", "w-1", 2)
    assert line["endpoint"] == endpoint(silent_port) and "--kv-events-config" in line["check"]
    assert attempts >= 2, "it goes on trying"
    assert len([one for one in logs if one["event"] == "event port does not answer"]) == 1, "and says so once"


async def test_what_was_told_is_taken_back_and_told_again_of_the_next_time(setup) -> None:
    subscribe, _, links, until = setup
    context, _, port = publisher()
    context.destroy(linger=0)
    with structlog.testing.capture_logs() as logs:
        subscribe(f"tcp://127.0.0.1:{port}", of={"worker": "w-1"}, unanswered_secs=0.2)
        await lines(logs, "event port does not answer")
        context, socket, _ = publisher(port)
        (line,) = await lines(logs, "event port answers")
        assert (line["log_level"], line["worker"]) == ("info", "w-1")
        await until(lambda: links == [True])
        await subscription(socket)
        context.destroy(linger=0)
        await lines(logs, "event port does not answer", 2)


async def test_a_port_that_answers_in_time_is_not_spoken_of(setup) -> None:
    subscribe, _, links, until = setup
    context, _, port = publisher()
    with structlog.testing.capture_logs() as logs:
        subscribe(f"tcp://127.0.0.1:{port}", unanswered_secs=5.0)
        await until(lambda: links == [True])
    assert not [line for line in logs if line["event"].startswith("event port")]
    context.destroy(linger=0)
