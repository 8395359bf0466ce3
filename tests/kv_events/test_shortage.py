"""Event sockets where there are next to no file descriptors: libzmq ends the process (SIGABRT) if it is let."""

from __future__ import annotations

import subprocess
import sys

import pytest
import zmq

from sgl_router.descriptors import EVENT_SOCKET, Descriptors
from sgl_router.kv_events import KvIndex, PromptMatch
from sgl_router.workers import HealthState, KvEventSource, Worker, WorkerInfo

# In a process of its own for each number of free descriptors, as an abort is what is looked for.
OPEN = """
import asyncio, contextlib, faulthandler, os, resource, sys, traceback
from sgl_router.kv_events import KvIndex
from sgl_router.workers import KvEventSource, Worker, WorkerInfo

async def follow(free):
    index = KvIndex(replay_idle_secs=0.05)
    index.prepare()
    held = []
    with contextlib.suppress(OSError):
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    for _ in range(free):
        os.close(held.pop())
    source = KvEventSource("127.0.0.1", port, replay_port_base=port)
    worker = Worker("http://w", WorkerInfo(served_model_name="m", kv_source=source, dp_size=2))
    index.worker_added(worker)
    ranks = index._ranks[worker]
    async for _ in index._replay(f"tcp://127.0.0.1:{port}", ranks[0].subscriber, 0):
        pass
    for descriptor in held:
        os.close(descriptor)
    await asyncio.wait_for(connected(ranks), 120)
    index.close()

async def connected(ranks):
    while not all(rank.subscriber.connected for rank in ranks):
        await asyncio.sleep(0.01)

port = int(sys.argv[1])
failed = {}
for free in range(0, 24):
    child = os.fork()
    if not child:
        faulthandler.dump_traceback_later(150, exit=True)
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
        status = 1
        try:
            asyncio.run(follow(free))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if status:
        failed[free] = os.waitstatus_to_exitcode(status)
print(failed)
os._exit(0)
"""


@pytest.mark.timeout(400)
def test_a_shortage_is_waited_out_and_never_ends_the_process() -> None:
    context = zmq.Context()
    publishers = [context.socket(zmq.PUB) for _ in range(2)]
    try:
        port = bind_next_to_each_other(*publishers)
        command = [sys.executable, "-c", OPEN, str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    finally:
        context.destroy(linger=0)
    assert done.stdout.splitlines()[-1] == "{}", done.stdout[-2000:] + done.stderr[-2000:]


def bind_next_to_each_other(first: zmq.Socket[bytes], second: zmq.Socket[bytes]) -> int:
    while True:
        port = first.bind_to_random_port("tcp://127.0.0.1")
        try:
            second.bind(f"tcp://127.0.0.1:{port + 1}")
            return port
        except zmq.ZMQError:
            first.unbind(f"tcp://127.0.0.1:{port}")


def worker(number: int, ranks: int) -> Worker:
    source = KvEventSource("127.0.0.1", 1_000 * number)
    info = WorkerInfo(served_model_name="m", kv_source=source, dp_size=ranks)
    return Worker(f"http://w{number}", info, health=HealthState.HEALTHY)


async def test_ranks_whose_sockets_do_not_fit_are_left_out_until_there_is_room() -> None:
    budget = Descriptors(128)
    fit = 0
    while budget.claim(EVENT_SOCKET):
        fit += 1
    for _ in range(fit):
        budget.give_back(EVENT_SOCKET)
    index = KvIndex(descriptors=budget)
    first, second = worker(1, fit - 2), worker(2, 8)
    index.worker_added(first)
    index.worker_added(second)
    assert [status.dp_rank for status in index.status(second)] == [0, 1]
    target = second.targets[5]
    assert index.held_tokens(target) == 0
    assert index.expect(target, PromptMatch([])) is None
    assert index.status(second)[0].dp_rank == 0
    index.worker_removed(second)
    index.worker_removed(first)
    third = worker(3, fit)
    index.worker_added(third)
    assert len(index.status(third)) == fit
    assert not budget.claim(EVENT_SOCKET)
    index.close()
    assert budget.claim(EVENT_SOCKET)


@pytest.mark.parametrize("ranks", [1, 1_024])
async def test_a_worker_with_any_number_of_ranks_is_followed_within_the_budget(ranks: int) -> None:
    index = KvIndex(descriptors=Descriptors(256))
    index.worker_added(many := worker(1, ranks))
    assert len(index.status(many)) == min(ranks, Descriptors(256)._left // 2 // EVENT_SOCKET)
    index.close()
