"""The daemon as its users run it: processes, signals, exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import pytest

from sgl_router.lab.mock_worker import EMBEDDED_TOKENIZER_PATH

MODEL = "mock-model"


class Process:
    """A child process whose output is kept and can be waited on."""

    def __init__(self, *arguments: str) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "sgl_router", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        self.lines: list[str] = []
        self._news = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            with self._news:
                self.lines.append(line)
                self._news.notify_all()
        with self._news:
            self.lines.append("")
            self._news.notify_all()

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def until(self, pattern: str, within: float = 120.0) -> re.Match[str]:
        """The first match of `pattern` in the output."""
        deadline = time.monotonic() + within
        with self._news:
            while True:
                match = re.search(pattern, self.output)
                if match:
                    return match
                ended = bool(self.lines) and self.lines[-1] == ""
                assert not ended, f"ended without {pattern!r}:\n{self.output}"
                assert self._news.wait(max(deadline - time.monotonic(), 0)), f"no {pattern!r} in:\n{self.output}"

    def signal(self, number: signal.Signals) -> None:
        self._child.send_signal(number)

    def wait(self, within: float = 120.0) -> int:
        return self._child.wait(within)

    def close(self) -> None:
        self._child.kill()
        self._child.wait()


Start = Callable[..., Process]


@pytest.fixture
def start() -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def run(*arguments: str) -> Process:
            process = Process(*arguments)
            stack.callback(process.close)
            return process

        yield run


def config(folder: pathlib.Path, urls: list[str], **server: float) -> str:
    path = folder / "config.yaml"
    settings = {
        "server": {"port": 0, "shutdown_drain_secs": 0, **server},
        "observability": {"log_format": "json"},
        "models": [{"id": MODEL, "tokenizer_path": EMBEDDED_TOKENIZER_PATH}],
        "discovery": {"static_urls": {"urls": urls}},
        "health": {"interval_secs": 0.2},
    }
    path.write_text(json.dumps(settings))  # JSON is YAML
    return str(path)


def request(url: str, body: object = None) -> tuple[int, dict[str, str], bytes]:
    data = None if body is None else json.dumps(body).encode()
    query = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(query, timeout=120) as reply:
            return reply.status, dict(reply.headers), reply.read()
    except urllib.error.HTTPError as reply:
        return reply.code, dict(reply.headers), reply.read()


def until_ready(url: str, within: float = 120.0) -> None:
    deadline = time.monotonic() + within
    while True:
        status, _, body = request(url + "/readyz")
        if status == 200:
            return
        assert time.monotonic() < deadline, body
        time.sleep(0.05)


def chat(content: str, **extra: object) -> dict[str, object]:
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": 4, **extra}


def test_two_workers_and_a_router_as_processes(start: Start, tmp_path: pathlib.Path) -> None:
    workers = [start("mock-worker", "--model-id", MODEL) for _ in range(2)]
    urls = [worker.until(r"http://127\.0\.0\.1:\d+").group() for worker in workers]
    router = start("--config", config(tmp_path, urls))
    url = json.loads(router.until(r".*router listening.*").group())["url"]
    until_ready(url)

    long = "one prefix that many prompts share, long enough to fill pages of cache " * 6
    homes = set()
    for number in range(5):
        status, headers, body = request(f"{url}/v1/chat/completions", chat(long + str(number)))
        assert status == 200, body
        homes.add(headers["x-sgl-router-worker"])
        # The next prompt must not overtake this one's events.
        deadline = time.monotonic() + 120
        while not any(
            rank["blocks"] for worker in json.loads(request(url + "/workers")[2])["workers"] for rank in worker["ranks"]
        ):
            assert time.monotonic() < deadline
    assert len(homes) == 1
    assert "reason=cache_hit" in headers["x-sgl-router-decision"]

    line = json.loads(router.until(r'\{.*"reason":"cache_hit".*\}').group())
    assert (line["outcome"], line["status"], line["model"]) == ("completed", 200, MODEL)
    assert line["matched_blocks"] > 0

    router.signal(signal.SIGTERM)
    assert router.wait() == 0
    router.until("router stopped")
    assert "Traceback" not in router.output
    for worker in workers:
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0


def test_draining_keeps_serving_and_a_second_signal_leaves_at_once(start: Start, tmp_path: pathlib.Path) -> None:
    worker = start("mock-worker", "--model-id", MODEL)
    url_of_worker = worker.until(r"http://127\.0\.0\.1:\d+").group()
    router = start("--config", config(tmp_path, [url_of_worker], shutdown_drain_secs=60))
    url = json.loads(router.until(r".*router listening.*").group())["url"]
    until_ready(url)
    router.signal(signal.SIGTERM)
    router.until("draining")
    status, _, body = request(url + "/readyz")
    assert status == 503
    assert b"shutting down" in body
    assert request(url + "/healthz")[0] == 200
    assert request(url + "/v1/chat/completions", chat("still served"))[0] == 200
    router.signal(signal.SIGTERM)
    assert router.wait() == 128 + signal.SIGTERM


def test_a_port_in_use_is_a_clear_error(start: Start, tmp_path: pathlib.Path) -> None:
    worker = start("mock-worker", "--model-id", MODEL)
    url = worker.until(r"http://127\.0\.0\.1:\d+").group()
    router = start("--config", config(tmp_path, [url], port=int(url.rpartition(":")[2])))
    assert router.wait() == 2
    router.until("server.host, server.port: cannot listen on")
    assert "Traceback" not in router.output


def test_demo_drives_a_workload_and_converges(start: Start) -> None:
    demo = start("demo", "--drive", "--port", "0", "--conversations", "3", "--turns", "3")
    assert demo.wait(240) == 0
    demo.until("Prompt tokens served from cache")
    assert "9 requests in" in demo.output
    assert "0 failed. 3 of 3 conversations stayed on one worker; 6 of 6 later turns" in demo.output


def test_demo_prints_a_curl_that_works_and_stops_on_ctrl_c(start: Start) -> None:
    demo = start("demo", "--workers", "3", "--port", "0")
    match = demo.until(r"curl -i (\S+) .* -d '(.*)'")
    status, headers, _ = request(match.group(1), json.loads(match.group(2)))
    assert status == 200
    assert "reason=" in headers["x-sgl-router-decision"]
    demo.signal(signal.SIGINT)
    assert demo.wait() == 0
