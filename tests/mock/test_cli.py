"""`mock-worker` from its flags to its exit."""

from __future__ import annotations

import argparse
import asyncio
import math
import re
import signal
import socket
import sys

import aiohttp
import pytest

from sgl_router.lab.mock_worker import cli
from sgl_router.lab.mock_worker.config import Dialect, MockWorkerConfig, Role
from sgl_router.tokenization import ModelTokenizer

RUN = (
    "import argparse, sys; from sgl_router.lab.mock_worker import cli;"
    "parser = argparse.ArgumentParser(); cli.add_arguments(parser);"
    "sys.exit(cli.run(parser.parse_args()))"
)


def parse(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return parser.parse_args(flags)


def test_no_flags_are_the_defaults() -> None:
    assert cli.config_from(parse()) == MockWorkerConfig()


def test_flags_become_settings() -> None:
    config = cli.config_from(
        parse(
            *("--page-size", "8", "--dp-size", "2", "--role", "prefill", "--dialect", "legacy"),
            *("--speed", "inf", "--bigram", "--no-enable-cache-report", "--queue-limit", "3"),
            *("--version-string", "0.5.6", "--api-key", "secret", "--host-cache-tokens", "500"),
            *("--publish-load", "--load-port", "5600", "--chunked-prefill-size", "512"),
            *("--prefill-overhead-ms", "1.5", "--decode-ms-per-running", "0"),
        )
    )
    assert (config.page_size, config.dp_size, config.role) == (8, 2, Role.PREFILL)
    assert (config.dialect, config.version, config.speed) == (Dialect.LEGACY, "0.5.6", math.inf)
    assert config.bigram
    assert (config.publish_load, config.load_port) == (True, 5600)
    assert not config.enable_cache_report
    timing = (config.chunked_prefill_size, config.prefill_overhead_ms, config.decode_ms_per_running)
    assert timing == (512, 1.5, 0.0)
    assert (config.queue_limit, config.api_key, config.host_cache_tokens) == (3, "secret", 500)


def test_impossible_settings_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(parse("--page-size", "0")) == 2
    assert "page_size must be at least 1" in capsys.readouterr().err


async def test_it_serves_until_told_to_stop() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", RUN, "--speed", "inf", "--page-size", "8"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        url = None
        while url is None:
            line = await asyncio.wait_for(process.stdout.readline(), 120)
            assert line, "the worker ended before it was ready"
            url = re.search(rb"mock worker ready at (http://\S+)", line)
        async with (
            aiohttp.ClientSession() as http,
            http.get(url[1].decode() + "/server_info") as response,
        ):
            assert (await response.json())["page_size"] == 8
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 120) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def test_a_taken_port_exits_with_1(tokenizer: ModelTokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert cli.run(parse("--port", str(taken.getsockname()[1]))) == 1
    assert "in use" in capsys.readouterr().err
