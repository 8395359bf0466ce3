"""Memory of the daemon under many unique requests: `python benchmarks/soak.py [--requests N] [--quick]`.

The daemon runs as users run it (own process, cache_aware_zmq, info log into a file) before two fake workers, in a
process of their own, that answer at once and publish what an engine with a cache of CACHE_BLOCKS blocks would: a
stored chain for every prompt and the removal of the oldest. The client sends prompts of about 8 KB, each unlike every
other from its first block on. Of twenty, twelve are answered whole, six are streamed to the end, one stream is
aborted by the client after its first bytes, and one request right after it was sent.

Verdict: "flat" if the mean of the last three readings of ten is less than 5 MiB above the mean of those at 50, 60 and
70 %; and at most 200 MiB above the idle daemon at every reading. Exit status 1 otherwise. --quick sends 5,000: too few
for caches to fill, so only the second rule counts.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import deque
from pathlib import Path
from typing import Any

WORKERS = 2
CONNECTIONS = 32
PAGE = 64
CACHE_BLOCKS = 20_000
PROMPT_TOKENS = 2_048
FLAT_MIB = 5.0
ABOVE_IDLE_MIB = 200.0
MODEL = "mock-model"
_MIB = 1 << 20


# The fake workers


class Engine:
    """What one worker publishes: random chains, of which it keeps the newest."""

    def __init__(self, context: Any, seed: int, *, events: bool) -> None:
        import msgspec
        import zmq

        self._encode = msgspec.msgpack.Encoder().encode
        self._socket = context.socket(zmq.PUB)
        self.port: int = self._socket.bind_to_random_port("tcp://127.0.0.1")
        self._events = events
        self._random = random.Random(seed)
        self._sequence = 0
        self._held: deque[list[int]] = deque()

    def serve_prompt(self) -> None:
        """Store the blocks of one more prompt, evict what is over the size of the cache."""
        if not self._events:
            return
        blocks = PROMPT_TOKENS // PAGE
        hashes = [self._random.getrandbits(63) for _ in range(blocks)]
        tokens = [value % 150_000 for value in memoryview(self._random.randbytes(4 * blocks * PAGE)).cast("I")]
        events: list[dict[str, Any]] = [
            {
                "type": "BlockStored",
                "block_hashes": hashes,
                "parent_block_hash": None,
                "token_ids": tokens,
                "block_size": PAGE,
                "lora_id": None,
                "medium": "GPU",
            }
        ]
        self._held.append(hashes)
        if len(self._held) * blocks > CACHE_BLOCKS:
            events.append({"type": "BlockRemoved", "block_hashes": self._held.popleft(), "medium": "GPU"})
        payload = self._encode([time.time(), events, 0])
        self._socket.send_multipart([b"kv-events", self._sequence.to_bytes(8, "big"), payload])
        self._sequence += 1

    def info(self) -> dict[str, Any]:
        block = {"publisher": "zmq", "endpoint_host": "127.0.0.1", "endpoint_port_base": self.port}
        block |= {"topic": "kv-events", "block_size": PAGE, "dp_size": 1}
        named = {"status": "ready", "model_path": MODEL, "served_model_name": MODEL, "disaggregation_mode": "null"}
        sized = {"page_size": PAGE, "dp_size": 1, "version": "0.5.23", "random_seed": self.port}
        return {**named, **sized, "kv_events": block}


def _answers() -> tuple[bytes, bytes]:
    usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": 16, "total_tokens": PROMPT_TOKENS + 16}
    base = {"id": "soak", "created": 0, "model": MODEL}
    message = {"index": 0, "message": {"role": "assistant", "content": "word " * 16}, "finish_reason": "stop"}
    whole = _response(json.dumps({**base, "object": "chat.completion", "choices": [message], "usage": usage}).encode())
    events = [
        {**base, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": "word "}}]}
    ] * 16
    lines = [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events] + [b"data: [DONE]\n\n"]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(line), line) for line in lines) + b"0\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return whole, head + chunks


def _response(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)


class WorkerProtocol(asyncio.Protocol):
    """Whole requests in, canned answers out."""

    WHOLE, STREAM = _answers()

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._received = bytearray()
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._received[:end]).lower()
            _, found, length = head.partition(b"\r\ncontent-length:")
            whole = end + 4 + (int(length.split(b"\r\n", 1)[0]) if found else 0)
            if len(self._received) < whole:
                return
            body = bytes(self._received[end + 4 : whole])
            del self._received[:whole]
            self._transport.write(self._answer(head.split(b" ", 2)[1], body))

    def _answer(self, path: bytes, body: bytes) -> bytes:
        if path == b"/v1/chat/completions":
            self._engine.serve_prompt()
            return self.STREAM if b'"stream": true' in body else self.WHOLE
        if path == b"/server_info":
            return _response(json.dumps(self._engine.info()).encode())
        if path in (b"/ready", b"/model_info"):
            return _response(b"{}")
        return _response(b"{}", b"404 Not Found")


async def serve_workers(*, events: bool) -> None:
    """Print the ports, serve until standard input ends."""
    import zmq

    loop = asyncio.get_running_loop()
    context = zmq.Context()
    ports = []
    for seed in range(WORKERS):
        engine = Engine(context, seed, events=events)
        server = await loop.create_server(lambda engine=engine: WorkerProtocol(engine), "127.0.0.1", 0)
        ports.append(server.sockets[0].getsockname()[1])
    print(json.dumps(ports), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    context.destroy(linger=0)


# The client


class Prompts:
    """Chat bodies of about 8 KB that share nothing but their shape and their words: fastokens remembers up to about a
    million words, and filling that up would look like a leak."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        words = ["".join(rng.choices("etaoinshrdlucmfwypvbgk", k=rng.randint(2, 9))) for _ in range(2_000)]
        self._words = words
        self._text = " ".join(rng.choices(words, k=100_000))
        self._random = rng

    def next(self, stream: bool) -> bytes:
        start = self._text.index(" ", self._random.randrange(len(self._text) - 8_000))
        shared, _, _ = self._text[start : start + 7_900].rpartition(" ")
        content = " ".join(self._random.choices(self._words, k=8)) + shared
        messages = [{"role": "user", "content": content}]
        return json.dumps({"model": MODEL, "messages": messages, "max_tokens": 16, "stream": stream}).encode()


class ClientProtocol(asyncio.Protocol):
    """One request at a time; `done` resolves to the status once the answer is whole, to 0 if the connection is lost."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.done: asyncio.Future[int] | None = None
        self._received = bytearray()
        self._first_bytes_do = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def ask(self, body: bytes, *, first_bytes_do: bool) -> asyncio.Future[int]:
        self._received.clear()
        self._first_bytes_do = first_bytes_do
        self.done = asyncio.get_running_loop().create_future()
        self.transport.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: soak\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(body), body)
        )
        return self.done

    def data_received(self, data: bytes) -> None:
        if self.done is None or self.done.done():
            return
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._received[:end]).lower()
        _, found, length = head.partition(b"\r\ncontent-length:")
        whole = (
            len(self._received) >= end + 4 + int(length.split(b"\r\n", 1)[0])
            if found
            else self._received.endswith(b"0\r\n\r\n")
        )
        if whole or self._first_bytes_do:
            self.done.set_result(int(head[9:12]))

    def connection_lost(self, error: Exception | None) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_result(0)


class Load:
    def __init__(self, port: int, requests: int, seed: int) -> None:
        self._port = port
        self._prompts = Prompts(seed)
        self._left = requests
        self.begun = 0
        self.statuses: dict[int, int] = {}
        self.aborted = 0

    async def run(self) -> None:
        await asyncio.gather(*(self._connection() for _ in range(CONNECTIONS)))

    async def _connection(self) -> None:
        loop = asyncio.get_running_loop()
        client: ClientProtocol | None = None
        while self._left > 0:
            self._left -= 1
            self.begun += 1
            kind = self.begun % 20
            if client is None or client.transport.is_closing():
                _, client = await loop.create_connection(ClientProtocol, "127.0.0.1", self._port)
            done = client.ask(self._prompts.next(stream=kind >= 12), first_bytes_do=kind == 18)
            if kind == 19:
                await asyncio.sleep(0.001)  # it is on its way, nobody waits for the answer
                status = None
            else:
                status = await asyncio.wait_for(done, 60)
                self.statuses[status] = self.statuses.get(status, 0) + 1
            if kind >= 18:
                self.aborted += 1
                client.transport.abort()
                client = None


# The run


def resident_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def cpu_secs(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start_daemon(folder: Path, ports: list[int], tokenizer: str) -> tuple[subprocess.Popen[bytes], int]:
    import yaml

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    urls = [f"http://127.0.0.1:{worker}" for worker in ports]
    config = {
        "server": {"port": port, "shutdown_drain_secs": 0.0},
        "observability": {"log_format": "json"},
        "models": [{"id": MODEL, "tokenizer_path": tokenizer, "policy": "cache_aware_zmq"}],
        "discovery": {"backend": "static_urls", "static_urls": {"urls": urls}},
    }
    path = folder / "router.yaml"
    path.write_text(yaml.safe_dump(config))
    with (folder / "router.log").open("wb") as log:
        return subprocess.Popen([sys.executable, "-m", "sgl_router", "--config", str(path)], stderr=log), port


def wait_ready(daemon: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if daemon.poll() is not None:
            raise SystemExit(f"the daemon ended:\n{log.read_text()[-2000:]}")
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2).close()
            return
        time.sleep(0.1)
    raise SystemExit(f"the daemon was not ready within 120 s:\n{log.read_text()[-2000:]}")


def event_lag_secs(port: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    lags = [float(line.rpartition(" ")[2]) for line in lines if line.startswith("sgl_router_kv_event_lag_seconds{")]
    return max(lags, default=0.0)


async def drive(port: int, pid: int, requests: int, seed: int) -> tuple[float, list[float], Load]:
    """The idle reading, the ten readings, and what was answered."""
    await asyncio.sleep(2.0)
    idle = resident_mib(pid)
    print(f"idle      {idle:8.1f} MiB", flush=True)
    load, readings = Load(port, requests, seed), []
    job = asyncio.ensure_future(load.run())
    marks = deque((tenth, requests * tenth // 10) for tenth in range(1, 11))
    cpu, at, begun = cpu_secs(pid), time.monotonic(), 0
    while marks and not (job.done() and job.exception()):
        if load.begun < marks[0][1] or (len(marks) == 1 and not job.done()):
            await asyncio.sleep(0.02)
            continue
        tenth, _ = marks.popleft()
        readings.append(resident_mib(pid))
        spent, now = cpu_secs(pid), time.monotonic()
        number = max(1, load.begun - begun)
        print(
            f"{tenth * 10:3d} %     {readings[-1]:8.1f} MiB   {number / (now - at):7.0f} requests/s"
            f"   {(spent - cpu) / number * 1e6:6.0f} us of its CPU each",
            flush=True,
        )
        cpu, at, begun = spent, now, load.begun
    await job
    return idle, readings, load


def verdict(idle: float, readings: list[float], *, quick: bool) -> bool:
    above = max(readings) - idle
    growth = sum(readings[-3:]) / 3 - sum(readings[4:7]) / 3
    flat, small = growth < FLAT_MIB, above <= ABOVE_IDLE_MIB
    shown = "too few requests to tell" if quick else "flat" if flat else "NOT FLAT"
    print(f"{shown}: {growth:+.1f} MiB from 50..70 % to 80..100 % (less than {FLAT_MIB:g} is flat)")
    print(f"{'ok' if small else 'TOO MUCH'}: {above:.1f} MiB above idle at most (bound {ABOVE_IDLE_MIB:g})")
    return small and (flat or quick)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200_000, metavar="N", help="default 200000")
    parser.add_argument("--quick", action="store_true", help="5,000 requests")
    parser.add_argument("--tokenizer", metavar="PATH", help="default: the mock's")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-events", action="store_true", help="workers that publish nothing")
    parser.add_argument("--serve-workers", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    with contextlib.suppress(ImportError):
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    if options.serve_workers:
        asyncio.run(serve_workers(events=not options.no_events))
        return 0
    from sgl_router.lab.mock_worker import EMBEDDED_TOKENIZER_PATH

    workers = subprocess.Popen(
        [sys.executable, __file__, "--serve-workers", *(["--no-events"] if options.no_events else [])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert workers.stdout is not None
    daemon = None
    with tempfile.TemporaryDirectory() as name:
        log = Path(name) / "router.log"
        try:
            ports = json.loads(workers.stdout.readline())
            daemon, port = start_daemon(Path(name), ports, options.tokenizer or EMBEDDED_TOKENIZER_PATH)
            wait_ready(daemon, port, log)
            requests = 5_000 if options.quick else options.requests
            idle, readings, load = asyncio.run(drive(port, daemon.pid, requests, options.seed))
            lag = event_lag_secs(port)
            daemon.send_signal(signal.SIGTERM)
            status = daemon.wait(60)
        finally:
            for process in (daemon, workers):
                if process is not None:
                    process.kill()
                    process.wait()
        with log.open("rb") as lines:
            logged = sum(b'"event":"request"' in line for line in lines)
    print(f"answers by status {load.statuses}, aborted {load.aborted}, log lines {logged}, exit status {status}")
    print(f"the last event was taken up {lag:.1f} s after its publication; what waits is memory too")
    return 0 if verdict(idle, readings, quick=options.quick) and set(load.statuses) == {200} else 1


if __name__ == "__main__":
    sys.exit(main())
