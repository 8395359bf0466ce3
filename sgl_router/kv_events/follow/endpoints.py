"""Which ranks name which event endpoint. One stream cannot be two caches: where two workers name the same endpoint,
it is not known whose it is. Pure."""

from __future__ import annotations

from typing import Generic, TypeVar

__all__ = ["Endpoints"]

R = TypeVar("R")

_LOOPBACK = ("tcp://localhost:", "tcp://127.0.0.1:", "tcp://[::1]:")


class Endpoints(Generic[R]):
    """Ranks by endpoint and topic. Topics are prefixes: two of them overlap where one begins with the other."""

    def __init__(self) -> None:
        self._named: dict[str, list[tuple[str, R]]] = {}

    def add(self, endpoint: str, topic: str, rank: R) -> list[R]:
        """Returns the others that name it too."""
        named = self._named.setdefault(_same(endpoint), [])
        others = _overlapping(named, topic)
        named.append((topic, rank))
        return others

    def remove(self, endpoint: str, topic: str, rank: R) -> list[R]:
        """Returns those that shared it with this rank, and now share it with none."""
        key = _same(endpoint)
        named = self._named[key] = [entry for entry in self._named.get(key, ()) if entry[1] is not rank]
        if not named:
            del self._named[key]
        overlapping = _overlapping(named, topic)
        return [one for at, one in named if one in overlapping and len(_overlapping(named, at)) == 1]


def _same(endpoint: str) -> str:
    """Ways to write this machine are one endpoint; other names are taken as they are written."""
    for prefix in _LOOPBACK:
        if endpoint.startswith(prefix):
            return _LOOPBACK[0] + endpoint[len(prefix) :]
    return endpoint


def _overlapping(named: list[tuple[str, R]], topic: str) -> list[R]:
    return [rank for other, rank in named if topic.startswith(other) or other.startswith(topic)]
