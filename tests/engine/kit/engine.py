"""Real SGLang workers on CPU, started and stopped by tests: `with running(Engine(env), Engine(env)) as (a, b)`."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kit.ports import MAX_RANKS, PortBlock
from kit.processes import ChildGroup
from kit.provision import Environment
from kit.worker import WorkerClient

SHIM = Path(__file__).resolve().parent / "shim"
MODEL = "tiny"
_STARTUP_SECS = 300.0  # 25 s on two idle cores; imports are what takes long on busy ones


class EngineError(RuntimeError):
    """A worker did not come up. The message ends with the tail of its log."""


class Engine(WorkerClient):
    """One worker: a process group that serves `url` and publishes KV events, all on loopback.

    Its ports are its own from construction to `close()`, so `kill()` and `start()` bring it back in the same place.
    `flags` are further SGLang arguments and win over the ones written here; `extra_env` likewise.
    `publisher` are further keys of the events' configuration (`hwm`, `buffer_steps`). `load_channel`: it publishes its
    load too, on every interface, for SGLang binds that socket to a wildcard only.
    """

    def __init__(
        self,
        environment: Environment,
        *,
        page_size: int = 16,
        dp_size: int = 1,
        max_total_tokens: int = 4096,
        context_length: int = 2048,
        cache_report: bool = True,
        load_channel: bool = False,
        api_key: str | None = None,
        flags: Sequence[str] = (),
        extra_env: Mapping[str, str] | None = None,
        publisher: Mapping[str, Any] | None = None,
        log_dir: Path | None = None,
    ) -> None:
        if not 1 <= dp_size <= MAX_RANKS:
            raise ValueError(f"dp_size must be in 1..{MAX_RANKS}, not {dp_size}")
        self.environment = environment
        self.ports = PortBlock()
        super().__init__(f"http://127.0.0.1:{self.ports.http}", api_key)
        self.page_size, self.dp_size = page_size, dp_size
        self._options = [
            f"--page-size={page_size}",
            f"--dp-size={dp_size}",
            f"--max-total-tokens={max_total_tokens}",
            f"--context-length={context_length}",
            *(["--enable-cache-report"] if cache_report else []),
            *([f"--api-key={api_key}"] if api_key is not None else []),
            *([f"--load-publish-endpoint=tcp://*:{self.ports.spare}"] if load_channel else []),
            *flags,
        ]
        self._extra_env = dict(extra_env or {})
        self._publisher = dict(publisher or {})
        self.log_path = (log_dir or environment.logs) / f"engine-{self.ports.http}.log"
        self.log_path.unlink(missing_ok=True)
        self._group: ChildGroup | None = None
        self._started = 0.0
        self.startup_secs: float | None = None

    def command(self) -> list[str]:
        events = {
            "publisher": "zmq",
            "topic": "kv",
            "bind": True,  # with an address other than a wildcard the publisher would connect instead
            "endpoint": f"tcp://127.0.0.1:{self.ports.kv}",
            "replay_endpoint": f"tcp://127.0.0.1:{self.ports.replay}",
            **self._publisher,
        }
        return [
            str(self.environment.python), "-m", "sglang.launch_server",
            f"--model-path={self.environment.model}", f"--served-model-name={MODEL}",
            "--host=127.0.0.1", f"--port={self.ports.http}",
            # What stands in for a GPU: plain torch everywhere, nothing captured, nothing overlapped.
            "--device=cpu", "--dtype=bfloat16", "--attention-backend=torch_native", "--sampling-backend=pytorch",
            "--grammar-backend=none", "--disable-cuda-graph", "--disable-overlap-schedule",
            "--mem-fraction-static=0.2", "--max-running-requests=8", "--skip-server-warmup",
            # An idle scheduler spins otherwise, and every worker would keep a core busy.
            "--sleep-on-idle",
            # Evictions and finished outputs reach the stream at the next decode step, not up to 40 steps later.
            "--decode-log-interval=1",
            f"--kv-events-config={json.dumps(events)}",
            *self._options,
        ]  # fmt: skip

    def environ(self) -> dict[str, str]:
        # SGLang takes every SGL_* variable for one of its own old names and complains.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SGL_", "PYTHON", "VIRTUAL_ENV"))}
        cache = self.environment.path / "cache"
        cores = os.cpu_count() or 1
        return {
            **inherited,
            "PATH": f"{self.environment.python.parent}{os.pathsep}{os.environ.get('PATH', '')}",
            "PYTHONPATH": str(SHIM),
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "no_proxy": "127.0.0.1,localhost",
            "NO_PROXY": "127.0.0.1,localhost",
            "XDG_CACHE_HOME": str(cache),
            "SGLANG_CACHE_DIR": str(cache / "sglang"),
            "OMP_NUM_THREADS": "1",  # the model is too small to gain from a second thread
            # The scheduler refuses several ranks on CPU unless each has its group of cores.
            **(
                {"SGLANG_CPU_OMP_THREADS_BIND": "|".join(str(r % cores) for r in range(self.dp_size))}
                if self.dp_size > 1
                else {}
            ),
            **self._extra_env,
        }

    @property
    def alive(self) -> bool:
        return self._group is not None and self._group.returncode is None

    @property
    def pid(self) -> int | None:
        return self._group.pid if self._group else None

    def launch(self) -> None:
        """Start the process without waiting; `wait_ready()` must follow."""
        if self._group is not None:
            raise EngineError(f"the worker on {self.url} is already started")
        self._started = time.monotonic()
        self._group = ChildGroup(self.command(), env=self.environ(), log_path=self.log_path)

    def wait_ready(self) -> None:
        while not self._is_ready():
            if not self.alive:
                self._fail("exited")
            if time.monotonic() - self._started > _STARTUP_SECS:
                self._fail(f"was not ready after {_STARTUP_SECS:.0f} s")
            time.sleep(0.2)
        self.startup_secs = time.monotonic() - self._started

    def _is_ready(self) -> bool:
        try:
            return self.call("/ready", timeout=5).status == 200
        except (OSError, http.client.HTTPException):
            return False

    def _fail(self, what: str) -> None:
        tail = self._group.log_tail() if self._group else ""
        self.kill()
        raise EngineError(f"the worker on {self.url} {what}; {self.log_path} ends with:\n{tail}")

    def start(self) -> None:
        self.launch()
        self.wait_ready()

    def stop(self) -> None:
        """An orderly end; takes about five seconds. Does nothing to a stopped worker."""
        if self._group is not None:
            self._group.stop()
            self._group = None

    def kill(self) -> None:
        """A crash: SIGKILL to every process of the worker, connections reset, nothing flushed."""
        if self._group is not None:
            self._group.kill()
            self._group = None

    def close(self) -> None:
        """End for good and give the ports back."""
        self.kill()
        self.ports.release()


@contextlib.contextmanager
def running(*engines: Engine) -> Iterator[tuple[Engine, ...]]:
    """Start workers side by side; end all of them afterwards, or when one fails to come up."""
    try:
        for engine in engines:
            engine.launch()
        for engine in engines:
            engine.wait_ready()
        yield engines
    finally:
        for engine in engines:
            engine.close()
