"""`sgl-router demo`: mock workers and a router in one process, and with `--drive` a workload to watch."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import socket
import sys

from sgl_router import signals
from sgl_router.cli.drive import Workload, drive
from sgl_router.cli.serve import new_event_loop
from sgl_router.config import (
    Config,
    DiscoveryConfig,
    HealthConfig,
    ModelConfig,
    ObservabilityConfig,
    PolicyName,
    ServerConfig,
    StaticUrlsConfig,
)
from sgl_router.lab.mock_worker import EMBEDDED_TOKENIZER_PATH, MockWorker, MockWorkerConfig
from sgl_router.observability import configure_logging
from sgl_router.runtime.daemon import Daemon, StartupError
from sgl_router.workers import worker_id

__all__ = ["run_demo"]

MODEL = "mock-model"
_READY_SECS = 30.0


def run_demo(options: argparse.Namespace) -> int:
    """Start everything; until Ctrl-C, or with `--drive` until the workload is done. Returns the exit status."""
    loop = new_event_loop()
    signals.dump_on_request(loop)
    try:
        return loop.run_until_complete(_demo(options))
    except KeyboardInterrupt:
        return 130
    finally:
        loop.close()


async def _demo(options: argparse.Namespace) -> int:
    # With a table to print, the request log would only be in its way.
    configure_logging("error" if options.drive else "info", "text")
    _say(f"starting {options.workers} mock workers and the router ...")
    async with contextlib.AsyncExitStack() as stack:
        workers = [MockWorker(MockWorkerConfig(model_id=MODEL)) for _ in range(options.workers)]
        for worker in workers:
            await stack.enter_async_context(worker)
        daemon = Daemon(_config(options, [worker.url for worker in workers]))
        try:
            await daemon.start()
        except StartupError as error:
            print(f"sgl-router: {error}", file=sys.stderr)
            return 2
        stack.push_async_callback(daemon.stop)
        await _until_ready(daemon)
        for worker in workers:
            await worker.subscribed(timeout=_READY_SECS)
        names = {worker_id(worker.url): f"worker-{number}" for number, worker in enumerate(workers)}
        if options.drive:
            workload = Workload(conversations=options.conversations, turns=options.turns, seed=1)
            return await drive(daemon.url, MODEL, workload, names)
        stop = _interruption()
        _say(f"ready: {daemon.url}  (policy {options.policy}; workers {', '.join(w.url for w in workers)})")
        _say("\ntry it:\n")
        _say(_curl(daemon.url))
        _say(f"\nlook inside: {daemon.url}/workers  {daemon.url}/internal/decisions  {daemon.url}/metrics")
        _say("Ctrl-C stops everything.\n")
        await stop.wait()
        _say("stopping ...")
    return 0


def _config(options: argparse.Namespace, urls: list[str]) -> Config:
    return Config(
        server=ServerConfig(port=_usual_port() if options.port is None else options.port),
        observability=ObservabilityConfig(),
        models=[ModelConfig(id=MODEL, tokenizer_path=EMBEDDED_TOKENIZER_PATH, policy=PolicyName(options.policy))],
        discovery=DiscoveryConfig(static_urls=StaticUrlsConfig(urls=urls)),
        health=HealthConfig(interval_secs=1.0),
    )


def _usual_port() -> int:
    """30000, or any where somebody else has that."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", 30000))
        except OSError:
            return 0
    return 30000


async def _until_ready(daemon: Daemon) -> None:
    for _ in range(int(_READY_SECS / 0.02)):
        if not daemon.services.unready():
            return
        await asyncio.sleep(0.02)
    raise RuntimeError(f"the demo's workers were not ready: {daemon.services.unready()}")


def _interruption() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (*signals.LEAVING, signal.SIGHUP):  # a terminal that closes ends what was tried in it
        loop.add_signal_handler(number, stop.set)
    return stop


def _curl(url: str) -> str:
    return (
        f"  curl -i {url}/v1/chat/completions -H 'content-type: application/json' -d '"
        f'{{"model": "{MODEL}", "messages": [{{"role": "user", "content": "Tell me about prefix caches."}}]}}\''
    )


def _say(text: str) -> None:
    print(text, flush=True)
