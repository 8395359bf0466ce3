"""Whether the event loop of another process turns, as far as can be told from outside."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Heartbeat", "Watch"]


class Watch(NamedTuple):
    """How processes are watched: each says something once a turn, and hangs after so many turns without a word.

    20 s: whoever is told to end loses what it carries, or the index, so that this must be no long collection, no disk
    that is slow, and no short look with a debugger. Requests do not wait for it: a routing process that is silent is
    decided without after 0.3 s.
    """

    turn_secs: float = 1.0
    patience: int = 20


class Heartbeat:
    """Silence is counted in turns of the watcher's own loop, not in seconds: where the whole machine was stopped the
    watcher was too, and has missed nothing. Pure."""

    __slots__ = ("_patience", "silent_turns")

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self.silent_turns = 0

    def beat(self) -> None:
        """The process has said something."""
        self.silent_turns = 0

    def turn(self) -> bool:
        """One more turn of the watcher's: whether the process hangs."""
        self.silent_turns += 1
        return self.silent_turns > self._patience
