"""What a data process has counted, on its way into the sums that the routing process shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import msgspec

from sgl_router.observability import Metrics
from sgl_router.observability.instruments import Counter, Histogram, Levels
from sgl_router.observability.logs import take_lost_lines

__all__ = ["Outgoing", "merge"]

_Labels = tuple[str, ...]
_Kind = TypeVar("_Kind", Counter, Histogram, Levels)


class _Delta(msgspec.Struct, array_like=True):
    """By the name a family has in `Metrics`: counters by labels; of histograms the buckets and the sum; of gauges with
    labels everything there is, each time: the other process may be a new one."""

    counters: dict[str, list[tuple[_Labels, int]]]
    histograms: dict[str, list[tuple[_Labels, list[int], float]]]
    levels: dict[str, list[tuple[_Labels, float]]] = {}


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Delta).decode


class Outgoing:
    """Remembers what has been handed over."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._counts: dict[tuple[str, _Labels], int] = {}
        self._spreads: dict[tuple[str, _Labels], tuple[list[int], float]] = {}
        self._shown: set[str] = set()  # gauges that have had something to show

    def take(self) -> bytes:
        """What has been counted since the last call; empty where that is nothing and no gauge shows anything."""
        self._metrics.records_lost.inc(take_lost_lines())
        delta = _Delta({}, {})
        for name, counter in _families(self._metrics, Counter):
            for labels, count in counter._children.items():
                news = count.value - self._counts.get((name, labels), 0)
                if news:
                    self._counts[name, labels] = count.value
                    delta.counters.setdefault(name, []).append((labels, news))
        for name, histogram in _families(self._metrics, Histogram):
            for labels, spread in histogram._children.items():
                counts, total = self._spreads.get((name, labels), ([0] * len(spread.counts), 0.0))
                if counts != spread.counts:
                    self._spreads[name, labels] = (list(spread.counts), spread.total)
                    grown = [now - before for now, before in zip(spread.counts, counts, strict=True)]
                    delta.histograms.setdefault(name, []).append((labels, grown, spread.total - total))
        for name, levels in _families(self._metrics, Levels):
            if levels.values or name in self._shown:
                self._shown.add(name)
                delta.levels[name] = list(levels.values.items())
        return _encode(delta) if delta.counters or delta.histograms or delta.levels else b""


def merge(metrics: Metrics, encoded: bytes) -> None:
    """Add what `Outgoing.take` gave. Raises DecodeError, KeyError or ValueError for what it cannot have given."""
    delta = _decode(encoded)
    counters = dict(_families(metrics, Counter))
    histograms = dict(_families(metrics, Histogram))
    for name, counts in delta.counters.items():
        for labels, value in counts:
            counters[name].labels(*labels).inc(value)
    for name, spreads in delta.histograms.items():
        for labels, buckets, total in spreads:
            spread = histograms[name].labels(*labels)
            spread.counts[:] = [have + more for have, more in zip(spread.counts, buckets, strict=True)]
            spread.total += total
    gauges = dict(_families(metrics, Levels))
    for name, rows in delta.levels.items():
        gauges[name].values = dict(rows)


def _families(metrics: Metrics, kind: type[_Kind]) -> Iterator[tuple[str, _Kind]]:
    return ((name, family) for name, family in vars(metrics).items() if isinstance(family, kind))
