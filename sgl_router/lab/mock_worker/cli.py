"""`sgl-router mock-worker`: one mock worker in the foreground."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from typing import Any

from sgl_router.lab.mock_worker.config import Dialect, MockWorkerConfig, Role
from sgl_router.signals import LEAVING, dump_on_request

_DEFAULTS = MockWorkerConfig()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `mock-worker`; every default is the one of MockWorkerConfig."""
    network = parser.add_argument_group("network")
    _flag(network, "--host", "address to bind")
    _flag(network, "--port", "HTTP port; 0 takes a free one", type=int)
    _flag(network, "--kv-port", "KV-event port of rank 0; 0 takes a free one", type=int)
    _flag(network, "--replay-port", "replay port of rank 0; 0 takes a free one", type=int)
    _flag(network, "--load-port", "load channel port of rank 0; 0 takes a free one", type=int)
    _flag(network, "--bootstrap-port", "prefill role: bootstrap port; 0 takes a free one", type=int)
    _flag(network, "--api-key", "require this bearer token")

    model = parser.add_argument_group("model")
    _flag(model, "--model-id", "served model name")
    _flag(model, "--tokenizer-path", "tokenizer directory", shown_default="the embedded one")
    _flag(model, "--context-length", "longest prompt plus answer, in tokens", type=int)
    _flag(model, "--answer-tokens", "length of an answer that is not cut short", type=int)
    _flag(model, "--role", "half of a prefill/decode pair", choices=[role.value for role in Role])

    cache = parser.add_argument_group("cache and events")
    _flag(cache, "--page-size", "tokens per cache page", type=int)
    _flag(cache, "--dp-size", "data-parallel ranks, each with a cache of its own", type=int)
    _flag(cache, "--cache-tokens", "cache size of one rank", type=int)
    _flag(cache, "--host-cache-tokens", "host tier (HiCache) of one rank; 0 for none", type=int)
    _flag(cache, "--bigram", "EAGLE-style bigram cache keys", action=argparse.BooleanOptionalAction)
    _flag(cache, "--dialect", "KV-event encoding to speak", choices=[dialect.value for dialect in Dialect])
    _flag(cache, "--version-string", "engine version to report", shown_default="the dialect's last")
    _flag(cache, "--topic", "KV-event topic")
    _flag(
        cache,
        "--publish-load",
        "publish the load too, as the engine's --load-publish-endpoint does",
        action=argparse.BooleanOptionalAction,
    )
    _flag(
        cache,
        "--enable-cache-report",
        "report cached_tokens in usage",
        action=argparse.BooleanOptionalAction,
    )

    speed = parser.add_argument_group("speed")
    _flag(speed, "--prefill-tokens-per-sec", "prefill rate", type=float)
    _flag(speed, "--prefill-overhead-ms", "duration of a prefill step, however short", type=float)
    _flag(speed, "--chunked-prefill-size", "tokens of a prefill step at most", type=int)
    _flag(speed, "--decode-ms-per-token", "duration of a decode step", type=float)
    _flag(speed, "--decode-ms-per-running", "more of it for every request in the step", type=float)
    _flag(speed, "--speed", "divide every simulated duration; inf removes them", type=float)
    _flag(speed, "--max-running", "requests running at once on one rank", type=int)
    _flag(speed, "--queue-limit", "requests waiting at once on one rank; more are refused", type=int)


def _flag(
    group: argparse._ArgumentGroup, name: str, help: str, *, shown_default: str | None = None, **options: Any
) -> None:
    default = getattr(_DEFAULTS, _setting(name[2:].replace("-", "_")))
    default = default.value if isinstance(default, (Role, Dialect)) else default
    shown = shown_default if shown_default is not None else default
    suffix = "" if shown is None else f" (default: {shown})"
    group.add_argument(name, default=default, help=help + suffix, **options)


def _setting(flag: str) -> str:
    return "version" if flag == "version_string" else flag


def config_from(args: argparse.Namespace) -> MockWorkerConfig:
    """The configuration the flags describe; raises ValueError."""
    given = {
        _setting(name): value
        for name, value in vars(args).items()
        if _setting(name) in MockWorkerConfig.__struct_fields__
    }
    return MockWorkerConfig(**{**given, "role": Role(given["role"]), "dialect": Dialect(given["dialect"])})


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; 2 for settings that make no sense."""
    try:
        config = config_from(args)
    except ValueError as error:
        print(f"sgl-router mock-worker: {error}", file=sys.stderr)
        return 2
    return asyncio.run(_serve(config))


async def _serve(config: MockWorkerConfig) -> int:
    import zmq

    from sgl_router.lab.mock_worker.worker import MockWorker
    from sgl_router.tokenization import TokenizerLoadError

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    dump_on_request(loop)
    for number in (*LEAVING, signal.SIGHUP):  # a terminal that closes ends what was tried in it
        loop.add_signal_handler(number, stop.set)
    worker = MockWorker(config)
    try:
        await worker.start()
    except (OSError, ValueError, zmq.ZMQError, TokenizerLoadError) as error:
        print(f"sgl-router mock-worker: {error}", file=sys.stderr)
        return 1
    events = f"kv events on port {worker.kv_port}" if config.publishes_events else "no kv events"
    print(
        f"mock worker ready at {worker.url} (model {config.model_id}, {config.role.value}, "
        f"dp {config.dp_size}, page {config.page_size}, {events}, dialect {config.dialect.value})",
        flush=True,
    )
    await stop.wait()
    await worker.stop()
    return 0
