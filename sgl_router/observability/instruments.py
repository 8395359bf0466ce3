"""Counters, gauges and histograms as plain numbers, turned into metric families when scraped.

For one thread, the event loop's: there is no lock, and a label set costs one dictionary look-up."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import Generic, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

__all__ = ["Count", "Counter", "Gauge", "Histogram", "Levels", "Spread"]

_Child = TypeVar("_Child", "Count", "Spread")


class Count:
    """The running total of one label set. `value` may be added to directly where a call is too much."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, amount: int = 1) -> None:
        self.value += amount


class Spread:
    """How the observations of one label set are spread over the buckets."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, amount: float) -> None:
        self.counts[bisect_left(self.bounds, amount)] += 1
        self.total += amount


class _Family(Generic[_Child]):
    __slots__ = ("_children", "_help", "_labels", "_name")

    def __init__(self, name: str, text: str, labels: Sequence[str] = ()) -> None:
        self._name = name
        self._help = text
        self._labels = tuple(labels)
        self._children: dict[tuple[str, ...], _Child] = {}

    def labels(self, *values: str) -> _Child:
        """The child of this label set: always the same object, so callers may keep it. Shown once it has counted."""
        child = self._children.get(values)
        return child if child is not None else self._new(values)

    def _new(self, values: tuple[str, ...]) -> _Child:
        if len(values) != len(self._labels):
            raise ValueError(f"{self._name} has the labels {self._labels}, not {len(values)} of them")
        child = self._children[values] = self._make()
        return child

    def _make(self) -> _Child:
        raise NotImplementedError


class Counter(_Family[Count]):
    """Totals by label set. The name is given without `_total`."""

    __slots__ = ("_shown", "inc")

    def __init__(self, name: str, text: str, labels: Sequence[str] = ()) -> None:
        super().__init__(name, text, labels)
        self._shown: set[tuple[str, ...]] = set()
        if not labels:
            self.inc = self.labels().inc

    def show(self, *values: str) -> None:
        """Show this label set from now on, also at 0: in a series that begins at 20, rate() and increase() see nothing
        of those 20."""
        self.labels(*values)
        self._shown.add(values)

    def _make(self) -> Count:
        return Count()

    def family(self) -> CounterMetricFamily:
        family = CounterMetricFamily(self._name, self._help, labels=self._labels)
        for values, child in self._children.items():
            if child.value or not values or values in self._shown:
                family.add_metric(values, child.value)
        return family


class Histogram(_Family[Spread]):
    """Observations by label set. A value equal to a bound belongs to that bound's bucket."""

    __slots__ = ("_bounds", "_names", "observe")

    def __init__(self, name: str, text: str, labels: Sequence[str] = (), *, buckets: Sequence[float]) -> None:
        super().__init__(name, text, labels)
        self._bounds = tuple(float(bound) for bound in buckets)
        self._names = [*map(repr, self._bounds), "+Inf"]
        if not labels:
            self.observe = self.labels().observe

    def _make(self) -> Spread:
        return Spread(self._bounds)

    def family(self) -> HistogramMetricFamily:
        family = HistogramMetricFamily(self._name, self._help, labels=self._labels)
        for values, child in self._children.items():
            buckets = list(zip(self._names, accumulate(child.counts), strict=True))
            if buckets[-1][1] or not values:
                family.add_metric(values, buckets, child.total)
        return family


class Levels:
    """A gauge with labels: what is so now, by label set. A label set is shown from `set` to `drop`."""

    __slots__ = ("_help", "_labels", "_name", "values")

    def __init__(self, name: str, text: str, labels: Sequence[str]) -> None:
        self._name = name
        self._help = text
        self._labels = tuple(labels)
        self.values: dict[tuple[str, ...], float] = {}

    def set(self, value: float, *labels: str) -> None:
        if len(labels) != len(self._labels):
            raise ValueError(f"{self._name} has the labels {self._labels}, not {len(labels)} of them")
        self.values[labels] = float(value)  # a bool would not pass between processes

    def drop(self, *labels: str) -> None:
        self.values.pop(labels, None)

    def family(self) -> GaugeMetricFamily:
        family = GaugeMetricFamily(self._name, self._help, labels=self._labels)
        for labels, value in self.values.items():
            family.add_metric(labels, value)
        return family


class Gauge:
    """One value without labels."""

    __slots__ = ("_help", "_name", "value")

    def __init__(self, name: str, text: str) -> None:
        self._name = name
        self._help = text
        self.value = 0.0

    def set(self, value: float) -> None:
        self.value = value

    def family(self) -> GaugeMetricFamily:
        return GaugeMetricFamily(self._name, self._help, value=self.value)
