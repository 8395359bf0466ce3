"""Where one worker publishes its KV-cache events."""

from __future__ import annotations

from dataclasses import dataclass

from sgl_router.workers.addresses import bracketed

__all__ = ["KvEventSource"]


@dataclass(frozen=True)
class KvEventSource:
    """Dialable addresses: hosts are never wildcards, and rank r of a range listens on `port_base + r`."""

    host: str
    port_base: int
    topic: str = ""
    replay_port_base: int | None = None
    replay_host: str | None = None  # None: the host of the events
    load_port_base: int | None = None
    load_topic: str | None = None

    def endpoint(self, rank: int) -> str:
        """The PUB socket of a rank."""
        return f"tcp://{bracketed(self.host)}:{self.port_base + rank}"

    def replay_endpoint(self, rank: int) -> str | None:
        """The ROUTER socket that replays a rank's recent batches, where the worker has one."""
        if self.replay_port_base is None:
            return None
        return f"tcp://{bracketed(self.replay_host or self.host)}:{self.replay_port_base + rank}"

    def load_endpoint(self, rank: int) -> str | None:
        """The PUB socket of a rank's load reports, where the worker has one."""
        if self.load_port_base is None:
            return None
        return f"tcp://{bracketed(self.host)}:{self.load_port_base + rank}"
