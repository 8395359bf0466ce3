"""The bench around a router: fake workers with their KV events, and the load generator."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import datapath_machine as machine
import datapath_material as material

PAGE_SIZE = 16
REPOSITORY = Path(__file__).resolve().parent.parent
_PORTS = range(20_000, 32_000)  # below the range that the kernel gives to connecting sockets
_given: set[int] = set()


def free_port() -> int:
    """A port nobody listens on, not given out before."""
    while True:
        port = random.choice(_PORTS)
        if port in _given:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _given.add(port)
            return port


def spawn(command: Sequence[object], cpus: set[int], **options: Any) -> subprocess.Popen[Any]:
    """Start a process on the given processors, in the repository, in a process group of its own."""

    def pin() -> None:
        if cpus:
            os.sched_setaffinity(0, cpus)

    return subprocess.Popen(
        [str(part) for part in command], preexec_fn=pin, start_new_session=True, cwd=REPOSITORY, **options
    )


def end(process: subprocess.Popen[Any] | None, patience: float = 5.0) -> None:
    """SIGTERM, and in the end SIGKILL for what is left of the group."""
    if process is None:
        return
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@dataclass
class Fleet:
    """Fake workers on one epoll process, and the process that publishes their KV events."""

    scratch: Path
    cache: Path
    python: str
    tokenizer: Path
    body_files: Sequence[Path]
    cpus: set[int]
    count: int = 4
    cached_tokens: int = -1
    urls: list[str] = field(default_factory=list)

    def __enter__(self) -> Fleet:
        empty = self.scratch / "model-without-tokenizer"
        empty.mkdir()
        arguments, described = [], []
        for number in range(self.count):
            port, kv_port, replay_port = free_port(), free_port(), free_port()
            pages = self.scratch / f"worker-{number}"
            pages.mkdir()
            for path, body in _pages(port, kv_port, replay_port, str(empty)).items():
                (pages / path.replace("/", "~")).write_text(body)
            arguments.append(f"{pages}:{port}")
            described.append({"kv_port": kv_port, "replay_port": replay_port})
            self.urls.append(f"http://127.0.0.1:{port}")
        spec = {
            "workers": described,
            "page": PAGE_SIZE,
            "groups": material.SYSTEM_PROMPTS,
            "tokenizer": str(self.tokenizer),
            "bodies": [str(path) for path in self.body_files],
        }
        (self.scratch / "kv.json").write_text(json.dumps(spec))
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._worker = spawn([material.compiled(self.cache, "worker"), *arguments], self.cpus, **pipes)
        self._kv_log = (self.scratch / "kv.log").open("w")
        kv_command = [self.python, Path(__file__).parent / "datapath_kv.py", self.scratch / "kv.json"]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        self._kv = spawn(kv_command, self.cpus, stderr=self._kv_log, env=environment, **pipes)
        for name, process in (("worker", self._worker), ("kv events", self._kv)):
            if _line(process.stdout) != "ready":
                raise RuntimeError(f"the {name} process did not start; see {self.scratch}")
        self.set(cached=self.cached_tokens)
        return self

    def __exit__(self, *_: object) -> None:
        for process in (self._kv, self._worker):
            if process.stdin is not None:
                process.stdin.close()
            end(process)
        self._kv_log.close()

    @property
    def pids(self) -> list[int]:
        return [self._worker.pid, self._kv.pid]

    @property
    def port(self) -> int:
        """The first worker's, to be asked without a router."""
        return int(self.urls[0].rpartition(":")[2])

    def set(self, **settings: int) -> None:
        """How streams are to be answered from now on: events, gap (microseconds), spread, cached."""
        for name, value in settings.items():
            if self._ask(f"{name} {value}") != "ok":
                raise RuntimeError(f"the fake workers refuse {name}")

    def stats(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._ask("stats"))
        return answer

    def _ask(self, line: str) -> str:
        assert self._worker.stdin is not None
        self._worker.stdin.write(line + "\n")
        self._worker.stdin.flush()
        return _line(self._worker.stdout)


@dataclass(frozen=True)
class Sample:
    """One run of the load generator. `errors`: everything that was not a whole 200."""

    figures: dict[str, Any]
    usage: machine.Usage
    errors: int

    @property
    def cpu_per_1000(self) -> float:
        """The router's CPU seconds for a thousand answers."""
        return self.usage.router * 1e3 / max(self.figures["done"], 1)

    def json(self) -> dict[str, Any]:
        return {**self.figures, "usage": vars(self.usage), "errors": self.errors}


@dataclass
class Load:
    """Runs the load generator. Every request of the whole benchmark has another counter in it."""

    cache: Path
    cpus: set[int]
    fleet: Fleet
    _next: int = 1

    def __call__(
        self,
        port: int,
        router: Sequence[int],
        parameters: Mapping[str, object],
        *,
        at_end: Callable[[], None] = lambda: None,
    ) -> Sample:
        """`router`: the processes to measure. `at_end` runs when the window closes and connections are still open."""
        arguments = [f"{name}={value}" for name, value in parameters.items()]
        process = spawn(
            [material.compiled(self.cache, "load"), f"port={port}", f"first={self._next}", *arguments],
            self.cpus,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            self._await(process, "window")
            meter = machine.Meter(router, [*self.fleet.pids, process.pid])
            meter.start()
            self._await(process, "end")
            usage = meter.stop()
            at_end()
            figures = json.loads(_line(process.stdout))
            process.wait(10)
        finally:
            end(process, 0)
        self._next += int(figures["sent"]) + 1
        names = ["bad_status", "bad_framing", "refused", "broken", "unanswered"]
        return Sample(figures, usage, sum(int(figures[name]) for name in names))

    @staticmethod
    def _await(process: subprocess.Popen[Any], phase: str) -> None:
        line = _line(process.stdout)
        if not line or json.loads(line).get("phase") != phase:
            said = process.stderr.read() if process.stderr is not None else ""
            raise RuntimeError(f"the load generator did not reach its {phase}: {line} {said}")


def _line(stream: IO[Any] | None) -> str:
    assert stream is not None
    return str(stream.readline()).strip()


def _pages(port: int, kv_port: int, replay_port: int, model_path: str) -> dict[str, str]:
    """GET answers: what SGLang 0.5.23 says, cut to what routers read.

    The model is an empty local directory: sglang-router would fetch a tokenizer for anything else.
    """
    model = {
        "model_path": model_path,
        "tokenizer_path": model_path,
        "served_model_name": material.MODEL,
        "is_generation": True,
        "preferred_sampling_params": None,
        "weight_version": "default",
        "has_image_understanding": False,
        "has_audio_understanding": False,
        "disaggregation_mode": "null",
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
    }
    events = {
        "publisher": "zmq",
        "endpoint_host": "*",
        "endpoint_port_base": kv_port,
        "topic": "",
        "block_size": PAGE_SIZE,
        "dp_size": 1,
        "replay_endpoint_port_base": replay_port,
    }
    launched = {
        "publisher": "zmq",
        "endpoint": f"tcp://*:{kv_port}",
        "replay_endpoint": f"tcp://*:{replay_port}",
        "topic": "",
    }
    server = {
        **model,
        "status": "ready",
        "host": "127.0.0.1",
        "port": port,
        "page_size": PAGE_SIZE,
        "context_length": 131072,
        "max_total_num_tokens": 1_000_000,
        "max_running_requests": 4096,
        "max_req_input_len": 131066,
        "dp_size": 1,
        "tp_size": 1,
        "pp_size": 1,
        "speculative_algorithm": None,
        "disable_radix_cache": False,
        "enable_cache_report": False,
        "disaggregation_bootstrap_port": 8998,
        "load_balance_method": "round_robin",
        "random_seed": port,
        "kv_events": events,
        "kv_events_config": json.dumps(launched),
        "startup_time": {"total": 12.5},
        "internal_states": [{"dp_rank": 0, "last_gen_throughput": 0.0, "load": 0}],
        "version": "0.5.23",
    }
    models = {
        "object": "list",
        "data": [
            {
                "id": material.MODEL,
                "object": "model",
                "created": 1767225600,
                "owned_by": "sglang",
                "root": model_path,
                "parent": None,
                "max_model_len": 131072,
            }
        ],
    }
    info, about = json.dumps(server), json.dumps(model)
    return {
        "/server_info": info,
        "/get_server_info": info,
        "/model_info": about,
        "/get_model_info": about,
        "/v1/models": json.dumps(models),
        "/ready": "{}",
        "/health": "",
        "/health_generate": "",
        "/get_load": "[]",
    }
