"""What a discovery backend says: which workers should exist, as a stream of changes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

__all__ = ["Added", "Discovery", "DiscoveryEvent", "DiscoveryUnavailable", "ModeChanged", "Removed", "WorkerMode"]


class WorkerMode(str, Enum):
    """What a worker does: everything, or one leg of a prefill/decode pair."""

    PLAIN = "plain"
    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True)
class Added:
    """This URL should be served. `mode_hint` counts only where the worker itself does not say its mode."""

    url: str
    mode_hint: WorkerMode | None = None


@dataclass(frozen=True)
class Removed:
    """This URL should be served no longer."""

    url: str


@dataclass(frozen=True)
class ModeChanged:
    """The mode hint of a URL that was added before has changed."""

    url: str
    mode: WorkerMode


DiscoveryEvent = Added | Removed | ModeChanged


class DiscoveryUnavailable(Exception):
    """The configured backend cannot run in this build; the message is meant for the operator."""


class Discovery(Protocol):
    """Iterating again starts over: a backend re-announces what should exist, and repeated Added are harmless."""

    def events(self) -> AsyncIterator[DiscoveryEvent]: ...
