"""Blocks of loopback ports, each held by a listening guard socket so that test processes cannot collide."""

from __future__ import annotations

import random
import socket

_FIRST = 30_000
_WIDTH = 40
_BLOCKS = 60
_HTTP, _KV, _REPLAY, _SPARE = 1, 4, 14, 24
MAX_RANKS = 8


class PortBlock:
    """Ports for one process: `http`, `kv` + rank, `replay` + rank, `spare`.

    All blocks lie below the kernel's ephemeral range and above 22000-29999, where SGLang picks its own
    torch.distributed port. The guard is a socket, not a file: it is gone when its owner dies, however it dies.
    """

    def __init__(self) -> None:
        for block in random.sample(range(_BLOCKS), _BLOCKS):
            base = _FIRST + _WIDTH * block
            guard = _listen(base)
            if guard is None:
                continue
            needed = [base + _HTTP, base + _HTTP + 10_000, base + _SPARE]  # SGLang may use its HTTP port + 10000
            for first in (base + _KV, base + _REPLAY):
                needed.extend(range(first, first + MAX_RANKS))
            if all(_is_free(port) for port in needed):
                self._guard = guard
                self.http = base + _HTTP
                self.kv = base + _KV
                self.replay = base + _REPLAY
                self.spare = base + _SPARE
                return
            guard.close()
        raise RuntimeError(f"none of the {_BLOCKS} port blocks from {_FIRST} up is free")

    def release(self) -> None:
        self._guard.close()


def _listen(port: int) -> socket.socket | None:
    guard = socket.socket()
    try:
        guard.bind(("127.0.0.1", port))
        guard.listen(1)
    except OSError:
        guard.close()
        return None
    return guard


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free enough
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True
