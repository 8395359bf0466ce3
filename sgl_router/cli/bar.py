"""A progress bar on a terminal."""

from __future__ import annotations

import sys

__all__ = ["Bar"]

_WIDTH = 32


class Bar:
    """Redrawn when there is something to see, on standard error."""

    def __init__(self) -> None:
        self._shown = ""

    def show(self, done: int, total: int, text: str) -> None:
        filled = _WIDTH * done // total
        line = f"[{'#' * filled}{'.' * (_WIDTH - filled)}] {text}"
        if line != self._shown:
            padding = " " * (len(self._shown) - len(line))
            self._shown = line
            print(f"\r{line}{padding}", end="", file=sys.stderr, flush=True)

    def wipe(self) -> None:
        print(f"\r{' ' * len(self._shown)}\r", end="", file=sys.stderr, flush=True)
