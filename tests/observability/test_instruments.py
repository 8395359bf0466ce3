"""What is exposed equals, byte for byte, what prometheus_client's own classes expose after the same history."""

from __future__ import annotations

import math
import random

import prometheus_client as reference
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from sgl_router.observability.instruments import Counter, Gauge, Histogram, Levels

BOUNDS = (0, 0.0001, 0.5, 1, 16384)


class Families:
    """A collector over families of ours."""

    def __init__(self, *families) -> None:
        self.families = families

    def describe(self):
        return ()

    def collect(self):
        return [family.family() for family in self.families]


@pytest.fixture(autouse=True)
def no_created_series():
    reference.disable_created_metrics()
    yield
    reference.enable_created_metrics()


def ours(*families) -> bytes:
    registry = CollectorRegistry()
    registry.register(Families(*families))
    return generate_latest(registry)


def test_the_exposition_is_prometheus_clients() -> None:
    theirs = CollectorRegistry()
    pairs = [
        (Counter("a_requests", 'Help, "quoted"\nand \\.', ("route", "method")),
         reference.Counter("a_requests", 'Help, "quoted"\nand \\.', ("route", "method"), registry=theirs)),
        (Counter("b_plain", "Plain."), reference.Counter("b_plain", "Plain.", registry=theirs)),
        (Histogram("c_secs", "Secs.", ("model_id",), buckets=BOUNDS),
         reference.Histogram("c_secs", "Secs.", ("model_id",), buckets=BOUNDS, registry=theirs)),
        (Histogram("d_lag", "Lag.", buckets=BOUNDS),
         reference.Histogram("d_lag", "Lag.", buckets=BOUNDS, registry=theirs)),
        (Gauge("e_gauge", "Gauge."), reference.Gauge("e_gauge", "Gauge.", registry=theirs)),
    ]  # fmt: skip
    mine = [pair[0] for pair in pairs]
    assert ours(*mine) == generate_latest(theirs)  # before anything is counted
    rng = random.Random(5)
    for counter, plain, labelled, lag, gauge in zip(*pairs, strict=True):
        for route in ("/v1/chat/completions", 'odd "route"\\', "ünï\n"):
            counter.labels(route, "POST").inc()
            counter.labels(route, "GET").inc(3)
        plain.inc()
        for value in (*BOUNDS, -1, 16385, math.inf, 1, 7):
            labelled.labels("m").observe(value)
            lag.observe(value)
        gauge.set(1)
    for _ in range(200):
        value = rng.expovariate(1.0)
        for labelled in pairs[2]:
            labelled.labels("org/model").observe(value)
    assert ours(*mine) == generate_latest(theirs)


def test_a_kept_child_is_the_one_that_is_counted_and_shows_once_it_has() -> None:
    counter = Counter("x", "X.", ("route",))
    spread = Histogram("y", "Y.", ("model_id",), buckets=BOUNDS)
    kept, other = counter.labels("/a"), spread.labels("m")
    assert counter.labels("/a") is kept
    assert b'route="/a"' not in ours(counter)
    assert b"_bucket" not in ours(spread)
    kept.inc()
    kept.value += 2
    other.observe(0.0)
    assert b'x_total{route="/a"} 3.0' in ours(counter)
    assert b'y_count{model_id="m"} 1.0' in ours(spread)


def test_a_counter_that_is_to_be_shown_begins_at_zero() -> None:
    counter = Counter("x", "X.", ("code",))
    counter.show("a")
    counter.labels("b")
    assert b'x_total{code="a"} 0.0' in ours(counter) and b'code="b"' not in ours(counter)
    counter.labels("a").inc()
    assert b'x_total{code="a"} 1.0' in ours(counter)


def test_a_wrong_number_of_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="route"):
        Counter("x", "X.", ("route", "method")).labels("/a")


def test_a_level_is_shown_from_set_to_drop() -> None:
    levels = Levels("x", "X.", ("url",))
    assert b"x{" not in ours(levels)
    levels.set(1, "a")
    levels.set(0, "b")
    assert b'x{url="a"} 1.0' in ours(levels) and b'x{url="b"} 0.0' in ours(levels)
    levels.drop("a")
    levels.drop("never")
    assert b'url="a"' not in ours(levels)
    with pytest.raises(ValueError, match="url"):
        levels.set(1, "a", "b")
