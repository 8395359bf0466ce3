"""CPU cost of receiving event frames: the router's subscriber against `zmq.asyncio`, on one socket.

    python benchmarks/event_receive.py [--frames 20000] [--bytes 800] [--runs 5]

Frames are published by another process; each run receives all of them on a fresh loop and socket. Printed: CPU
microseconds of this process per frame (median over the runs) and the ratio. Frames lost would end the run with an
error: the publisher waits for the subscription, and the high-water marks are above the frame count.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection

import structlog
import zmq
import zmq.asyncio

from sgl_router.upstream.zmq_subscriber import Subscriber, make_context


def publish(pipe: Connection, frames: int, size: int) -> None:
    context = zmq.Context()
    socket = context.socket(zmq.XPUB)
    socket.sndhwm = 0
    pipe.send(socket.bind_to_random_port("tcp://127.0.0.1"))
    socket.recv()  # the subscription
    payload = b"x" * size
    for number in range(frames):
        socket.send_multipart([b"kv", number.to_bytes(8, "big"), payload])
    pipe.recv()
    context.destroy(linger=0)


async def with_subscriber(port: int, frames: int) -> None:
    done = asyncio.get_running_loop().create_future()
    left = frames

    def readable(subscriber: Subscriber) -> None:
        nonlocal left
        while subscriber.receive() is not None:
            left -= 1
        if left == 0 and not done.done():
            done.set_result(None)

    context = make_context()
    subscriber = Subscriber(
        context,
        f"tcp://127.0.0.1:{port}",
        "kv",
        receive_high_water_mark=0,
        max_message_bytes=1 << 26,
        readable=readable,
        connection=lambda subscriber, connected: None,
    )
    await asyncio.wait_for(done, 60)
    subscriber.close()
    context.term()


async def with_zmq_asyncio(port: int, frames: int) -> None:
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.SUB)
    socket.rcvhwm = 0
    socket.subscribe("kv")
    socket.connect(f"tcp://127.0.0.1:{port}")
    for _ in range(frames):
        await asyncio.wait_for(socket.recv_multipart(), 60) if _ == 0 else await socket.recv_multipart()
    context.destroy(linger=0)


def measure(receive: object, frames: int, size: int) -> float:
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.Process(target=publish, args=(theirs, frames, size))
    child.start()
    port = ours.recv()
    started = time.process_time()
    asyncio.run(receive(port, frames))  # type: ignore[operator]
    spent = time.process_time() - started
    ours.send(None)
    child.join()
    return spent / frames * 1e6


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--bytes", type=int, default=800)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    rows: dict[str, list[float]] = {"subscriber": [], "zmq.asyncio": []}
    for _ in range(options.runs):
        rows["subscriber"].append(measure(with_subscriber, options.frames, options.bytes))
        rows["zmq.asyncio"].append(measure(with_zmq_asyncio, options.frames, options.bytes))
    medians = {name: statistics.median(values) for name, values in rows.items()}
    for name, values in rows.items():
        print(f"{name:<12} {medians[name]:7.2f} us CPU/frame (min {min(values):.2f}, max {max(values):.2f})")
    print(f"ratio        {medians['zmq.asyncio'] / medians['subscriber']:7.2f}")


if __name__ == "__main__":
    main()
