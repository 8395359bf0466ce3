"""The daemon under test, as a subprocess with a configuration file, and what it tells about itself."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml
from kit.client import Reply, Stream, call
from kit.ports import PortBlock
from kit.processes import ChildGroup

from lane.answers import WorkerView
from lane.waiting import until

ROOT = Path(__file__).resolve().parents[3]
KEY_VARIABLE = "SGL_ROUTER_LANE_WORKER_KEY"
BREAKER_THRESHOLD = 3
BREAKER_COOL_DOWN_SECS = 2.0


class Router:
    """`python -m sgl_router --config FILE` in front of the given workers.

    `routing` are further keys of the model's entry (`policy`, `queue`), `sections` further sections (`kv_events`).
    """

    server: ClassVar[dict[str, Any]] = {}
    """What the lane was asked to set in the section `server`: another front, more processes."""

    def __init__(
        self,
        folder: Path,
        *,
        model: str,
        tokenizer: str,
        urls: Sequence[str],
        api_key: str | None = None,
        routing: Mapping[str, Any] | None = None,
        **sections: Mapping[str, Any],
    ) -> None:
        self._ports = PortBlock()
        self.url = f"http://127.0.0.1:{self._ports.http}"
        self.model = model
        discovery: dict[str, Any] = {"backend": "static_urls", "static_urls": {"urls": list(urls)}}
        if api_key is not None:
            discovery["worker_api_key_env"] = KEY_VARIABLE
        config = {
            "server": {
                "host": "127.0.0.1",
                "port": self._ports.http,
                "shutdown_drain_secs": 0.1,
                "shutdown_grace_secs": 5,
                **self.server,
            },
            "models": [
                {
                    "id": model,
                    "tokenizer_path": tokenizer,
                    "policy": "cache_aware_zmq",
                    "circuit_breaker": {
                        "threshold": BREAKER_THRESHOLD,
                        "cool_down_secs": BREAKER_COOL_DOWN_SECS,
                    },
                    **(routing or {}),
                }
            ],
            "discovery": discovery,
            "health": {"interval_secs": 1, "timeout_secs": 2, "failure_threshold": 3, "success_threshold": 1},
            **sections,
        }
        self._config = folder / "router.yaml"
        self._config.write_text(yaml.safe_dump(config, sort_keys=False))
        self.log_path = folder / "router.log"
        key = {} if api_key is None else {KEY_VARIABLE: api_key}
        self._environ = {**os.environ, **key, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        self._process: ChildGroup | None = None

    def start(self, timeout: float = 60.0) -> None:
        argv = [sys.executable, "-m", "sgl_router", "--config", str(self._config)]
        process = self._process = ChildGroup(argv, env=self._environ, log_path=self.log_path)

        def ready() -> bool:
            status = process.returncode
            assert status is None, f"the router exited with status {status}:\n{process.log_tail()}"
            try:
                return self.call("/readyz", timeout=5).status == 200
            except (OSError, http.client.HTTPException):
                return False

        until(ready, f"/readyz of the router; its log is {self.log_path}", timeout)

    def stop(self) -> int:
        """SIGTERM, and the status the router exits with."""
        assert self._process is not None, "the router was not started"
        self._process.signal_leader(signal.SIGTERM)
        status = self._process.wait_leader(timeout=15)
        self.close()
        assert status is not None, "the router did not end within 15 s of SIGTERM"
        return status

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """SIGSTOP, and SIGCONT at the end: nothing of the router runs, its sockets stay open."""
        assert self._process is not None, "the router was not started"
        process = self._process
        process.signal_leader(signal.SIGSTOP)
        try:
            yield
        finally:
            process.signal_leader(signal.SIGCONT)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process = None
        self._ports.release()

    def call(self, path: str, body: Any = None, *, timeout: float = 60.0) -> Reply:
        return call(self.url + path, body, timeout=timeout)

    def chat(self, body: Mapping[str, Any]) -> Reply:
        return self.call("/v1/chat/completions", {"model": self.model, **body})

    def stream(self, body: Mapping[str, Any]) -> Stream:
        whole = {"model": self.model, "stream": True, **body}
        return Stream(f"{self.url}/v1/chat/completions", whole)

    def workers(self) -> dict[str, WorkerView]:
        """GET /workers, by URL."""
        reply = self.call("/workers")
        assert reply.status == 200, f"GET /workers: {reply}"
        return {view.url: view for view in map(WorkerView, reply.json()["workers"])}

    def metric(self, series: str) -> float:
        """The value of one series of /metrics, written as it is there, labels included; 0 where it is not."""
        reply = self.call("/metrics")
        assert reply.status == 200, f"GET /metrics: {reply}"
        for line in reply.body.decode().splitlines():
            name, _, value = line.rpartition(" ")
            if name == series:
                return float(value)
        return 0.0
