from __future__ import annotations

import random

import pytest

from sgl_router.kv_events.follow import names
from sgl_router.kv_events.follow.names import Names


@pytest.fixture(autouse=True)
def early_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "SPLIT_AT", 40)


def a_hash(rng: random.Random) -> int | bytes:
    number = rng.randrange(120)
    mixed = number * 0x9E3779B97F4A7C15 % 2**64
    return mixed.to_bytes(8, "big") if number % 5 == 0 else mixed - 2**63 if number % 2 else mixed


@pytest.mark.parametrize("seed", range(60))
def test_it_is_a_dictionary(seed: int) -> None:
    rng = random.Random(seed)
    mine: Names[int] = Names()
    model: dict[int | bytes, int] = {}
    for _ in range(150):
        kind = rng.random()
        if kind < 0.5:
            keys = [a_hash(rng) for _ in range(rng.randrange(8))]
            values = [rng.randrange(50) for _ in keys]
            displaced = []
            for key, value in zip(keys, values, strict=True):
                if model.get(key, value) != value:
                    displaced.append(model[key])
                model[key] = value
            assert sorted(mine.put(keys, values)) == sorted(displaced)
        elif kind < 0.6:
            key = a_hash(rng)
            mine[key] = model[key] = rng.randrange(50)
        elif kind < 0.8:
            key = a_hash(rng)
            assert mine.pop(key, -1) == model.pop(key, -1)
        elif kind < 0.9:
            found = mine.oldest(5)
            assert len(found) <= 5
            assert all(model[key] == value for key, value in found)
        for key in (a_hash(rng) for _ in range(4)):
            assert (key in mine) == (key in model)
            assert mine.get(key, -1) == model.get(key, -1)
        assert len(mine) == len(model)
        assert bool(mine) == bool(model)
        assert dict(mine.items()) == model
    while mine:
        key, value = mine.popitem()
        assert model.pop(key) == value
    assert not model


def test_a_name_that_is_not_there_is_an_error() -> None:
    mine: Names[None] = Names()
    with pytest.raises(KeyError):
        mine[1]
    with pytest.raises(KeyError):
        mine.popitem()
    mine.put(range(1, 50), [None] * 49)
    assert mine[1] is None
    assert 1 in mine
    with pytest.raises(KeyError):
        mine[99]


def test_the_oldest_come_first_and_all_of_them_come() -> None:
    mine: Names[int] = Names()
    mine.put(range(39), range(39))
    assert [key for key, _ in mine.oldest(3)] == [0, 1, 2]
    rng = random.Random(1)
    for number in range(39, 500):
        mine[rng.getrandbits(64)] = number
    seen = 0
    for _ in range(10_000):
        found = mine.oldest(4)
        for key, _ in found:
            mine.pop(key)
        seen += len(found)
        if not mine:
            break
    assert seen == 500


def test_no_dictionary_grows_beyond_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Growing is copying: 64 dictionaries that each hold a sixty-fourth do it in as many steps."""
    monkeypatch.setattr(names, "SPLIT_AT", 1_000)
    mine: Names[int] = Names()
    rng = random.Random(2)
    for _ in range(200):
        mine.put([rng.getrandbits(64) - 2**63 for _ in range(512)], range(512))
    assert mine.plain is None
    assert not mine._old, "the first dictionary is empty long since"
    assert max(map(len, mine._shards)) < 2 * len(mine) / 64
