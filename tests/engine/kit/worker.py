"""What the tests ask an SGLang worker directly, past the router."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping
from typing import Any

from kit.client import Reply, Stream, call


class WorkerClient:
    """The HTTP side of one worker, the tests' own or the operator's."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url = url.rstrip("/")
        self.api_key = api_key

    def headers(self, rank: int | None = None) -> dict[str, str]:
        found = {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}
        if rank is not None:
            found["X-Data-Parallel-Rank"] = str(rank)
        return found

    def call(self, path: str, body: Any = None, *, rank: int | None = None, timeout: float = 60.0) -> Reply:
        return call(self.url + path, body, headers=self.headers(rank), timeout=timeout)

    def stream(self, path: str, body: Any) -> Stream:
        return Stream(self.url + path, body, headers=self.headers())

    def server_info(self) -> dict[str, Any]:
        reply = self.call("/server_info")
        if reply.status != 200:
            raise RuntimeError(f"{self.url}/server_info answered {reply}")
        info: dict[str, Any] = reply.json()
        return info

    def chat(self, body: Mapping[str, Any], *, rank: int | None = None) -> dict[str, Any]:
        """A buffered completion that must succeed."""
        reply = self.call("/v1/chat/completions", dict(body), rank=rank)
        if reply.status != 200:
            raise RuntimeError(f"{self.url} answered {reply}")
        answer: dict[str, Any] = reply.json()
        return answer

    def tokenize(self, body: Mapping[str, Any]) -> Reply:
        return self.call("/v1/tokenize", dict(body))

    def flush(self) -> None:
        """Empty the cache. The engine refuses while requests run, so it is asked to wait for them."""
        reply = self.call("/flush_cache?timeout=20", {}, timeout=30)
        if reply.status != 200:
            raise RuntimeError(f"{self.url}/flush_cache answered {reply}")

    def unfinished(self) -> int:
        """Requests the engine is running or has queued, over all ranks."""
        loads = self.call("/v1/loads").json()["loads"]
        return sum(load["num_running_reqs"] + load["num_waiting_reqs"] for load in loads)

    def kv_endpoints(self) -> list[tuple[str, str]]:
        """(address, topic) of each rank's event stream, from what the worker advertises."""
        events = self.server_info()["kv_events"]
        host = events["endpoint_host"]
        if host in ("*", "0.0.0.0", "::"):
            host = urllib.parse.urlsplit(self.url).hostname
        base, topic = events["endpoint_port_base"], events["topic"]
        return [(f"tcp://{host}:{base + rank}", topic) for rank in range(events["dp_size"])]
