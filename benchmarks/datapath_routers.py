"""The routers under test: started, found ready, asked for their metrics, ended."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datapath_machine as machine
import datapath_material as material
from datapath_rig import REPOSITORY, Fleet, end, free_port, spawn

PEER = "sglang-router"
PEER_VERSION = "0.3.2"
_PEER_NEEDS = ("setproctitle", "aiohttp", "orjson", "uvicorn", "fastapi")
_START_SECS = 90.0
_PROBES = 32
_SERIES = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)", re.M)


def get(port: int, path: str, body: str | None = None, timeout: float = 5.0) -> tuple[int, bytes]:
    """One request; (0, b"") where nothing answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET" if body is None else "POST", path, body, {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    return 0, b""


@dataclass
class Router:
    """A router process. `name` is its column in the tables."""

    name: str
    fleet: Fleet
    scratch: Path
    cpus: set[int]
    port: int = 0
    _process: subprocess.Popen[Any] | None = None
    _starts: int = 0

    def command(self) -> list[object]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def is_ready(self) -> bool:
        raise NotImplementedError

    def start(self) -> None:
        """Start afresh; returns once it answers requests through every worker."""
        self.port = free_port()
        self._starts += 1
        with self.log.open("w") as log:
            self._process = spawn(
                self.command(), self.cpus, env=self.environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._await(self.is_ready, "ready")
        probe = json.dumps({"model": material.MODEL, "messages": [{"role": "user", "content": "hello"}]})
        for _ in range(_PROBES):
            self._await(lambda: get(self.port, "/v1/chat/completions", probe)[0] == 200, "answering")

    def stop(self) -> None:
        end(self._process)
        self._process = None

    @property
    def log(self) -> Path:
        return self.scratch / f"{self.name}-{self._starts}.log"

    @property
    def pids(self) -> list[int]:
        assert self._process is not None
        return machine.tree(self._process.pid)

    def metrics(self) -> dict[str, float]:
        """What should be shown of the router's own counters, or nothing."""
        return {}

    def _await(self, condition: Callable[[], bool], what: str) -> None:
        limit = time.monotonic() + _START_SECS
        while not condition():
            died = self._process is None or self._process.poll() is not None
            if died or time.monotonic() > limit:
                last = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
                raise RuntimeError(f"{self.name} {'died' if died else f'is not {what}'}; the end of its log:\n{last}")
            time.sleep(0.1)


@dataclass
class Ours(Router):
    """This project's router: cache_aware_zmq, log level info, everything on."""

    python: str = sys.executable
    tokenizer: Path = Path()
    server: dict[str, Any] = field(default_factory=dict)

    def command(self) -> list[object]:
        config = {
            "server": {"host": "127.0.0.1", "port": self.port, "shutdown_drain_secs": 0.0, "shutdown_grace_secs": 1.0}
            | self.server,
            "observability": {"log_level": "info"},
            "models": [{"id": material.MODEL, "tokenizer_path": str(self.tokenizer), "policy": "cache_aware_zmq"}],
            "discovery": {"backend": "static_urls", "static_urls": {"urls": self.fleet.urls}},
        }
        path = self.scratch / f"{self.name}.yaml"
        path.write_text(json.dumps(config))  # JSON is YAML
        return [self.python, "-m", "sgl_router", "--config", path]

    def is_ready(self) -> bool:
        """Ready by its own word, and every worker's published blocks are in the index."""
        if get(self.port, "/readyz")[0] != 200:
            return False
        held = {
            labels
            for name, labels, value in self._series()
            if name == "sgl_router_kv_tree_blocks" and 'tier="GPU"' in labels and value > 0
        }
        return len(held) == self.fleet.count

    def metrics(self) -> dict[str, float]:
        found: dict[str, float] = {}

        def add(name: str, value: float) -> None:
            found[name] = found.get(name, 0.0) + value

        for name, labels, value in self._series():
            if name == "sgl_router_cache_aware_decisions_total":
                reason = re.search(r'decision="([^"]*)"', labels)
                add(reason[1] if reason else "?", value)
            elif name == "sgl_router_overlap_blocks_sum":
                add("matched_blocks", value)
            elif name == "sgl_router_decision_seconds_sum":
                add("decision_secs", value)
            elif name == "sgl_router_kv_events_total" and 'kind="stored"' in labels:
                add("blocks_stored", value)
        with contextlib.suppress(OSError), self.log.open("rb") as log:
            add("log_lines", sum(chunk.count(b"\n") for chunk in iter(lambda: log.read(1 << 20), b"")))
        return found

    def _series(self) -> list[tuple[str, str, float]]:
        status, text = get(self.port, "/metrics")
        if status != 200:
            return []
        return [(name, labels, float(value)) for name, labels, value in _SERIES.findall(text.decode())]


@dataclass
class Peer(Router):
    """sglang-router as its users run it: cache_aware with the defaults, log level warn."""

    python: str = ""

    def command(self) -> list[object]:
        options = ["--policy", "cache_aware", "--log-level", "warn", "--host", "127.0.0.1"]
        ports = ["--port", self.port, "--prometheus-port", free_port(), "--prometheus-host", "127.0.0.1"]
        return [self.python, "-m", "sglang_router.launch_router", *options, *ports, "--worker-urls", *self.fleet.urls]

    def environment(self) -> dict[str, str]:
        # It looks for the workers' tokenizer on the network; there is no need for it in this policy.
        return {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{free_port()}", "HF_HUB_OFFLINE": "1"}

    def is_ready(self) -> bool:
        status, body = get(self.port, "/workers")
        if status != 200:
            return False
        workers = json.loads(body).get("workers", [])
        return sum(bool(worker.get("is_healthy", True)) for worker in workers) == self.fleet.count


@dataclass
class Floor(Router):
    """The bare relay of datapath_floor.py."""

    python: str = sys.executable

    def command(self) -> list[object]:
        ports = [url.rpartition(":")[2] for url in self.fleet.urls]
        return [self.python, REPOSITORY / "benchmarks" / "datapath_floor.py", self.port, *ports]

    def is_ready(self) -> bool:
        return get(self.port, "/health")[0] == 200


def install_peer(cache: Path) -> str:
    """The interpreter of a virtual environment that has the peer."""
    directory = cache / f"{PEER}-{PEER_VERSION}"
    python = directory / "bin" / "python"
    ready = directory / "installed"
    if not ready.exists():
        print(f"installing {PEER} {PEER_VERSION} into {directory} (once)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", directory], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-deps", f"{PEER}=={PEER_VERSION}"], check=True)
        subprocess.run([*pip, *_PEER_NEEDS], check=True)
        ready.touch()
    return str(python)
