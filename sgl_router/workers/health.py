"""Is a registered worker alive? A cheap probe, and the thresholds that keep one lost packet from mattering."""

from __future__ import annotations

from typing import NamedTuple

import aiohttp

from sgl_router.upstream.control import FetchError, fetch
from sgl_router.upstream.fault import WorkerFault
from sgl_router.workers.worker import HealthState

__all__ = ["HealthTracker", "Probe", "ProbeResult"]

# Never /health: it generates a token. The first path the server knows is kept.
_PATHS = ("/ready", "/model_info", "/v1/models")
_MAX_BODY_BYTES = 1 << 20


class HealthTracker:
    """Counts consecutive probe results. Pure."""

    def __init__(self, failure_threshold: int, success_threshold: int) -> None:
        self.state = HealthState.STARTING
        self._failure_threshold = failure_threshold
        self._success_threshold = success_threshold
        self._failures = 0
        self._successes = 0

    def observe(self, ok: bool) -> HealthState:
        """The state after one more probe."""
        if ok:
            self._failures = 0
            self._successes += 1
            if self._successes >= self._success_threshold:
                self.state = HealthState.HEALTHY
        else:
            self._successes = 0
            self._failures += 1
            if self._failures >= self._failure_threshold:
                self.state = HealthState.UNHEALTHY
        return self.state

    def trust(self) -> HealthState:
        """Healthy at once: the worker has just said who it is and that it is ready."""
        self._failures = 0
        self._successes = self._success_threshold
        self.state = HealthState.HEALTHY
        return self.state


class ProbeResult(NamedTuple):
    """`fault` is None for a live worker; `ready` if it said so itself on /ready."""

    fault: WorkerFault | None
    detail: str
    ready: bool = False


class Probe:
    """Probes one URL, and remembers which endpoint the server has."""

    def __init__(self, session: aiohttp.ClientSession, url: str, *, api_key: str | None, timeout_secs: float) -> None:
        self._session = session
        self._url = url
        self._api_key = api_key
        self._timeout_secs = timeout_secs
        self._path = 0

    def forget(self) -> None:
        """Another server may answer from now on."""
        self._path = 0

    async def check(self) -> ProbeResult:
        """One probe; a server that knows none of the paths is taken for dead."""
        while True:
            path = _PATHS[self._path]
            try:
                reply = await fetch(
                    self._session,
                    self._url,
                    path,
                    api_key=self._api_key,
                    timeout_secs=self._timeout_secs,
                    max_bytes=_MAX_BODY_BYTES,
                )
            except FetchError as error:
                return ProbeResult(error.fault, str(error))
            if reply.status == 200:
                return ProbeResult(None, "", ready=self._path == 0)
            if reply.status == 404 and self._path + 1 < len(_PATHS):
                self._path += 1
                continue
            if reply.status == 404:
                self.forget()
            return ProbeResult(WorkerFault.of_status(reply.status), f"HTTP {reply.status} from {path}")
