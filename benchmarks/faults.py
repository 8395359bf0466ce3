"""Faults met in use, each with its load and what came of it: `python benchmarks/faults.py [SCENARIO ...]`.

The figures of docs/reliability.md. The daemon runs as a process of its own, in front of scripted workers that live in
this process, or of mock workers where caches matter. Two minutes for all of them; `--list` names them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from faults_rig import MODEL, PLAIN, Router, Script, ScriptedWorker, chat, event_stream, response, router

from sgl_router.lab.mock_worker import MockWorker, MockWorkerConfig

POLICIES = ("cache_aware_zmq", "kv_cost", "power_of_two", "round_robin", "random")
FULL = {"error": {"message": "The request queue is full.", "code": 503}}


@contextlib.asynccontextmanager
async def fleet(*scripts: Script, **over: Any):  # type: ignore[no-untyped-def]
    """Workers with these scripts, and a router in front of them."""
    workers = [ScriptedWorker(script) for script in scripts]
    for worker in workers:
        await worker.start()
    try:
        async with router([worker.url for worker in workers], **over) as made:
            yield made, workers
    finally:
        for worker in workers:
            worker.die()


def saying(data: bytes, after: float = 0.0) -> Script:
    """Answers every chat with `data`."""

    async def script(worker: ScriptedWorker, body: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(after)
        writer.write(data)

    return script


async def at_rate(job: Callable[[int], Awaitable[Any]], count: int, per_sec: float) -> list[Any]:
    """`count` calls of `job`, open loop."""
    begun = asyncio.get_running_loop().time()
    tasks = []
    for number in range(count):
        await asyncio.sleep(max(begun + number / per_sec - asyncio.get_running_loop().time(), 0))
        tasks.append(asyncio.ensure_future(job(number)))
    return await asyncio.gather(*tasks)


async def _numbered(made: Router, number: int, **fields: Any) -> None:
    await chat(made, f"{number} hello", **fields)


async def refusing_worker() -> dict[str, Any]:
    """A1: one of four workers refuses at once, the others take 1 s; 288 requests at 50/s. Requests it was sent."""
    found = {}
    kinds = {
        "503": saying(response(503, FULL)),
        "401": saying(response(401, {"error": "Unauthorized"})),
        "event": saying(event_stream(json.dumps(FULL))),
        "503 after 50 ms": saying(response(503, FULL), 0.05),
    }
    for policy in POLICIES:
        for kind, script in kinds.items():
            if kind != "503" and policy not in ("cache_aware_zmq", "kv_cost"):
                continue
            slow = saying(PLAIN, 1.0)
            async with fleet(script, slow, slow, slow, model={"policy": policy}) as (made, workers):
                ask = functools.partial(_numbered, made, stream=kind == "event")
                await at_rate(ask, 288, 50)
                found[f"{policy}, {kind}"] = f"{workers[0].chats} of 288"
    return found


async def deadly_request() -> dict[str, Any]:
    """A2: a request that kills the worker that reads it, over kept-alive connections. Workers that read it."""

    async def mortal(worker: ScriptedWorker, body: bytes, writer: asyncio.StreamWriter) -> None:
        if b"deadly" in body:
            worker.die()
        else:
            await asyncio.sleep(0.05)
            writer.write(PLAIN)

    async def works_and_closes(worker: ScriptedWorker, body: bytes, writer: asyncio.StreamWriter) -> None:
        if b"deadly" in body:
            await asyncio.sleep(2)
            writer.close()
        else:
            await asyncio.sleep(0.05)
            writer.write(PLAIN)

    found = {}
    for name, script in (("killed at once", mortal), ("worked 2 s, closed", works_and_closes)):
        async with fleet(*[script] * 4) as (made, workers):
            await asyncio.gather(*(chat(made, f"{number} warm") for number in range(32)))
            before = sum(worker.chats for worker in workers)
            status, _ = await chat(made, "deadly")
            found[name] = f"{sum(worker.chats for worker in workers) - before} executions, status {status}"
    return found


async def unlike_failures() -> dict[str, Any]:
    """A4: 500, 400, 500, 400 ... and one poisonous body sent again and again. State of the breaker."""
    turn = iter(range(1000))

    async def alternating(worker: ScriptedWorker, body: bytes, writer: asyncio.StreamWriter) -> None:
        if b"poison" in body:
            writer.write(response(500, {"error": "x"}))
        else:
            writer.write(response(500 if next(turn) % 2 == 0 else 400, {"error": "x"}))

    found = {}
    async with fleet(alternating) as (made, _):
        for number in range(7):
            await chat(made, f"{number} unlike")
        found["500 and 400 in turns, 7 requests"] = (await made.get("/workers"))["workers"][0]["breaker"]["state"]
    async with fleet(alternating) as (made, _):
        for _ in range(9):
            await chat(made, "poison")
        found["one body, nine times 500"] = (await made.get("/workers"))["workers"][0]["breaker"]["state"]
    return found


async def equal_workers() -> dict[str, Any]:
    """A6: kv_cost, two equal idle mock workers, 60 unlike prompts one after the other, then 120 by eight clients."""
    found = {}
    for processes in (1, 2):
        async with contextlib.AsyncExitStack() as stack:
            workers = [MockWorker(MockWorkerConfig(model_id=MODEL)) for _ in range(2)]
            for worker in workers:
                await stack.enter_async_context(worker)
            over: dict[str, Any] = {"model": {"policy": "kv_cost"}, "server": {"processes": processes}}
            made = await stack.enter_async_context(router([worker.url for worker in workers], **over))
            serial = await _shares(made, workers, clients=1, requests=60)
            concurrent = await _shares(made, workers, clients=8, requests=120)
            found[f"processes {processes}"] = f"serial {serial}, concurrent {concurrent}"
    return found


async def _shares(made: Router, workers: list[MockWorker], *, clients: int, requests: int) -> str:
    """How many of `requests` unlike prompts each worker got."""
    before = [worker.log.total for worker in workers]
    gate = asyncio.Semaphore(clients)

    async def ask(number: int) -> None:
        words = random.Random(f"{clients} {number}")
        async with gate:
            await chat(made, " ".join(str(words.getrandbits(40)) for _ in range(60)), max_tokens=2, stream=True)

    await asyncio.gather(*map(ask, range(requests)))
    return "/".join(str(worker.log.total - one) for worker, one in zip(workers, before, strict=True))


async def few_descriptors() -> dict[str, Any]:
    """A7: `ulimit -n 256`, 160 requests at once that take 1 s. Their statuses, the breakers, and ten requests after."""
    async with fleet(*[saying(PLAIN, 1.0)] * 3, descriptors=256) as (made, _):
        statuses = Counter(status for status, _ in await asyncio.gather(*(chat(made, f"{n}") for n in range(160))))
        after = Counter(status for status, _ in await asyncio.gather(*(chat(made, f"{n} after") for n in range(10))))
        states = [worker["breaker"]["state"] for worker in (await made.get("/workers"))["workers"]]
    return {"statuses": dict(statuses), "ten afterwards": dict(after), "breakers": states}


async def uploads() -> dict[str, Any]:
    """A8: 60 unfinished uploads of 31 MiB. Memory in MiB before, at the most, and after they are gone."""
    async with fleet(saying(PLAIN)) as (made, _):
        before = made.memory()[0]
        piece = b"x" * (1 << 20)
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        head += b"content-length: %d\r\n\r\n" % (31 << 20)
        answers: Counter[str] = Counter()

        async def upload() -> asyncio.StreamWriter:
            reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
            writer.write(head)
            with contextlib.suppress(ConnectionError, asyncio.TimeoutError):
                for _ in range(30):
                    writer.write(piece)
                    await asyncio.wait_for(writer.drain(), 5)
            with contextlib.suppress(asyncio.TimeoutError, ConnectionError):
                line = await asyncio.wait_for(reader.readline(), 1)
                answers[line.decode().strip()] += 1
            return writer

        writers = await asyncio.gather(*(upload() for _ in range(60)))
        most = made.memory()[1]
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(2)
        after = made.memory()[0]
        answers["no answer"] = 60 - answers.total()
        status, _ = await chat(made)
    memory = {"before": round(before), "most": round(most), "after": round(after)}
    return {**memory, "answers": dict(answers), "status of the next chat": status}


async def long_prompt() -> dict[str, Any]:
    """A8: one prompt of 31 MiB of short tokens. Memory in MiB at the most."""
    async with fleet(saying(PLAIN)) as (made, _):
        before = made.memory()[0]
        status, _ = await chat(made, "a " * (31 << 19))
        return {"status": status, "before": round(before), "most": round(made.memory()[1])}


async def held_loop() -> dict[str, Any]:
    """A9: an endless trailer for 3 s, and 30 MB of JSON numbers. Turns of the loop later than 20 ms."""
    found = {}
    async with fleet(saying(PLAIN)) as (made, _):
        _, writer = await asyncio.open_connection("127.0.0.1", made.port)
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
        )
        sent, until = 0, time.monotonic() + 3
        with contextlib.suppress(ConnectionError, asyncio.TimeoutError):
            while time.monotonic() < until:
                writer.write(b"x-t: " + b"y" * 60_000 + b"\r\n")
                await asyncio.wait_for(writer.drain(), 1)
                sent += 60_000
        writer.close()
        found["trailer"] = f"{sent / 1e6:.1f} MB taken, {await made.lag_over(0.02)} late turns"
    numbers = b'{"model": "' + MODEL.encode() + b'", "messages": [{"role": "user", "content": "x"}], "n": ['
    numbers += b"1," * 15_000_000 + b"1]}"
    async with fleet(saying(PLAIN)) as (made, _):
        headers = {"content-type": "application/json"}
        async with made.session.post(made.url + "/v1/chat/completions", data=numbers, headers=headers) as answer:
            found["numbers"] = f"status {answer.status}, {await made.lag_over(0.02)} late turns"
    return found


async def drain() -> dict[str, Any]:
    """A11: 150 clients, each on its kept-alive connection, through a SIGTERM with 3 s of drain."""
    outcomes: Counter[str] = Counter()
    async with fleet(saying(PLAIN), server={"shutdown_drain_secs": 3}) as (made, _):
        body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "x"}]}).encode()
        request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        request += b"content-length: %d\r\n\r\n%b" % (len(body), body)

        async def client(number: int) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
            await asyncio.sleep(number / 500)
            while True:
                writer.write(request)
                try:
                    head = await reader.readuntil(b"\r\n\r\n")
                    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                    await reader.readexactly(length)
                except (asyncio.IncompleteReadError, ConnectionError):
                    outcomes["EOF instead of an answer"] += 1
                    break
                if b"connection: close" in head.lower():
                    outcomes["told to close"] += 1
                    break
                await asyncio.sleep(0.3)
            writer.close()

        clients = [asyncio.ensure_future(client(number)) for number in range(150)]
        await asyncio.sleep(1.5)
        os.kill(made.process.pid, signal.SIGTERM)
        await asyncio.gather(*clients)
    return dict(outcomes)


SCENARIOS: dict[str, Callable[[], Awaitable[dict[str, Any]]]] = {
    job.__name__.replace("_", "-"): job
    for job in (
        refusing_worker,
        deadly_request,
        unlike_failures,
        equal_workers,
        few_descriptors,
        uploads,
        long_prompt,
        held_loop,
        drain,
    )
}


def main() -> None:
    """Run what was asked for, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", nargs="*", metavar="SCENARIO", help="default: all")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    unknown = set(options.scenario) - set(SCENARIOS)
    if unknown:
        parser.error(f"no scenario {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}")
    for name in options.scenario or SCENARIOS:
        print(f"{name}: {(SCENARIOS[name].__doc__ or '').strip()}", flush=True)
        if not options.list:
            for what, figure in asyncio.run(SCENARIOS[name]()).items():
                print(f"    {what}: {figure}", flush=True)


if __name__ == "__main__":
    main()
