"""Event lag of the index benchmark: frames of other processes, over ZMQ, through subscriber and pump to the tree."""

from __future__ import annotations

import asyncio
import multiprocessing
import struct
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import zmq
from index_work import TOPIC, Fleet, frames, median, quantile

from sgl_router.kv_events.follow.pump import EventPump, Feed
from sgl_router.kv_events.follow.stream import EventStream
from sgl_router.kv_events.follow.wire import Event
from sgl_router.upstream.zmq_subscriber import Subscriber, make_context

TURN_BUDGET_SECS = 0.002
"""The router's default."""
BATCH_BLOCKS = 64
PROBE_SECS = 0.002

COLUMNS = (
    "load",
    "page",
    "batches",
    "lag p50 ms",
    "lag p99 ms",
    "lag max ms",
    "burst applied in ms",
    "loop lag p50 ms",
    "loop lag p99 ms",
    "loop lag max ms",
    "sender late max ms",
)


class Load(NamedTuple):
    """`rate` batches a second from each worker for `secs`; with `burst`, worker 0 sends only that many, all at once."""

    name: str
    page: int
    workers: int
    rate: float
    secs: float
    burst: int = 0


class TimedStream(EventStream):
    """Notes, for every batch (one event each here), the time from its publication to its last block being applied."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lags: list[tuple[float, float]] = []

    def apply(self, event: Event) -> None:
        super().apply(event)
        now = time.time()
        self.lags.append((now, now - self.last_ts))


def plan(load: Load) -> list[tuple[float, int]]:
    """(seconds after the start, worker) of every batch, in order; the workers are spread over a period."""
    period = 1 / load.rate
    due: list[tuple[float, int]] = []
    for worker in range(load.workers):
        if load.burst and worker == 0:
            due += [(load.secs / 2, 0)] * load.burst
        else:
            due += [((number + worker / load.workers) * period, worker) for number in range(int(load.secs / period))]
    return sorted(due)


def publish(pipe: Connection, load: Load, members: list[int]) -> None:
    """One socket per worker, as in a fleet. Batches carry the time at which they are sent."""
    context = zmq.Context()
    sockets: dict[int, zmq.Socket[bytes]] = {}
    for worker in members:
        sockets[worker] = context.socket(zmq.XPUB)
        sockets[worker].sndhwm = 0
    due = [(when, worker) for when, worker in plan(load) if worker in sockets]
    # Every frame stands alone: whichever worker's turn it is can send it.
    work = frames(
        BATCH_BLOCKS * len(due),
        page=load.page,
        workers=1,
        per_page=False,
        seed=1,
        batch_blocks=BATCH_BLOCKS,
        chain=1,
    )
    payloads = [bytearray(wire.parts[2]) for wire in work]
    pipe.send({worker: socket.bind_to_random_port("tcp://127.0.0.1") for worker, socket in sockets.items()})
    for socket in sockets.values():
        socket.recv()  # the subscription
    start = pipe.recv()
    sequence = dict.fromkeys(members, 0)
    late = 0.0
    for (when, worker), payload in zip(due, payloads, strict=True):
        wait = start + when - time.time()
        if wait > 0:
            time.sleep(wait)
        elif not (load.burst and worker == 0):
            late = max(late, -wait)
        struct.pack_into(">d", payload, 2, time.time())  # [ts, events, rank]: an array header, a float header, ts
        sockets[worker].send_multipart([TOPIC, sequence[worker].to_bytes(8, "big"), payload])
        sequence[worker] += 1
    pipe.send(late)
    pipe.recv()
    context.destroy(linger=0)


async def probe(lags: list[float]) -> None:
    """How late a timer fires, which is what a request would wait for the loop."""
    while True:
        start = time.perf_counter()
        await asyncio.sleep(PROBE_SECS)
        lags.append(time.perf_counter() - start - PROBE_SECS)


async def receive(pipes: list[Connection], load: Load) -> dict[str, float]:
    fleet = Fleet(load.workers, load.page, stream=TimedStream)
    pump = EventPump(fleet.tree, turn_budget_secs=TURN_BUDGET_SECS, max_message_bytes=64 << 20)
    context = make_context()
    subscribers: list[Subscriber] = []
    feeds: dict[Subscriber, Feed] = {}
    loop = asyncio.get_running_loop()
    ports: dict[int, int] = {}
    for pipe in pipes:
        ports |= await loop.run_in_executor(None, pipe.recv)
    connected = asyncio.Event()
    for worker, stream in enumerate(fleet.streams):
        subscriber = Subscriber(
            context,
            f"tcp://127.0.0.1:{ports[worker]}",
            TOPIC.decode(),
            receive_high_water_mark=100_000,
            max_message_bytes=64 << 20,
            readable=lambda source: pump.wake(feeds[source]),
            connection=lambda source, up: connected.set() if all(s.connected for s in subscribers) else None,
        )
        subscribers.append(subscriber)
        feeds[subscriber] = Feed(subscriber, stream)
    await connected.wait()
    late: list[float] = []
    probing = asyncio.ensure_future(probe(late))
    expected = len(plan(load))
    start = time.time() + 0.2
    for pipe in pipes:
        pipe.send(start)
    sender_late = max([await loop.run_in_executor(None, pipe.recv) for pipe in pipes])
    deadline = loop.time() + 60
    while sum(stream.counters.frames for stream in fleet.streams) < expected or not pump.idle:
        if loop.time() > deadline:
            raise RuntimeError("frames were lost")
        await asyncio.sleep(0.01)
    probing.cancel()
    if any(stream.counters.gaps or stream.counters.orphans for stream in fleet.streams):
        raise RuntimeError("frames were lost")
    for subscriber in subscribers:
        subscriber.close()
    context.term()
    timed = [stream.lags for stream in fleet.streams if isinstance(stream, TimedStream)]
    first, last, burst = 0.0, float("inf"), 0.0
    if load.burst:
        done, lag = timed[0][0]
        first, last, burst = done - lag, timed[0][-1][0], max(lag for _, lag in timed[0])
        timed = timed[1:]
    # During a burst only what was sent or applied while it lasted counts.
    lags = [lag for lags in timed for done, lag in lags if done >= first and done - lag <= last]
    return {
        "batches": float(len(lags)),
        "p50": quantile(lags, 0.5),
        "p99": quantile(lags, 0.99),
        "max": max(lags),
        "burst": burst,
        "loop50": quantile(late, 0.5),
        "loop99": quantile(late, 0.99),
        "loopmax": max(late),
        "late": sender_late,
    }


def measure(load: Load, use_uvloop: bool) -> dict[str, float]:
    spawn = multiprocessing.get_context("spawn")
    everyone = list(range(load.workers))
    pipes, children = [], []
    # The bursting worker is a process of its own, or its burst would delay the others before they have sent.
    for members in [everyone[:1], everyone[1:]] if load.burst else [everyone]:
        ours, theirs = spawn.Pipe()
        child = spawn.Process(target=publish, args=(theirs, load, members), daemon=True)
        child.start()
        pipes.append(ours)
        children.append(child)
    loop = new_loop(use_uvloop)
    try:
        return loop.run_until_complete(asyncio.wait_for(receive(pipes, load), load.secs + 120))
    finally:
        loop.close()
        for pipe, child in zip(pipes, children, strict=True):
            pipe.send(None)
            child.join(10)


def new_loop(use_uvloop: bool) -> asyncio.AbstractEventLoop:
    if not use_uvloop:
        return asyncio.new_event_loop()
    import uvloop

    return uvloop.new_event_loop()


def rows(
    pages: Sequence[int], workers: int, rate: float, secs: float, burst: int, runs: int, *, use_uvloop: bool
) -> Iterator[Sequence[str]]:
    loads = [Load("hardly any", 1, 1, 10, 2.0)]
    for page in pages:
        loads.append(Load(f"{workers} x {rate:g} batches/s", page, workers, rate, secs))
        loads.append(Load(f"the other workers during a burst of {burst:,}", page, workers, rate, 2.0, burst))
    for load in loads:
        results = [measure(load, use_uvloop) for _ in range(runs)]
        got = {name: median([result[name] for result in results]) for name in results[0]}
        yield (
            load.name,
            str(load.page),
            f"{got['batches']:,.0f}",
            *(f"{got[name] * 1e3:.2f}" for name in ("p50", "p99", "max")),
            f"{got['burst'] * 1e3:,.0f}" if load.burst else "",
            *(f"{got[name] * 1e3:.2f}" for name in ("loop50", "loop99", "loopmax", "late")),
        )
