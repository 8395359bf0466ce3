"""What lies in the supervisor's private folder."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

__all__ = ["Paths"]


class Paths(NamedTuple):
    """For the owner alone: whoever can connect to the sockets can take leases and see worker URLs."""

    folder: Path
    removed: int = 0
    """How many folders of routers that were killed have been removed before this one was made."""

    @property
    def config(self) -> Path:
        """The configuration as it was when the router started: a process that is started again must not differ."""
        return self.folder / "config.json"

    @property
    def leases(self) -> str:
        return str(self.folder / "leases")

    @property
    def http(self) -> str:
        return str(self.folder / "http")
