"""What is written, and what of others' writing is read."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sgl_router.lab.replay.measure import summarise
from sgl_router.lab.replay.study import Replay, as_json, read_other


def replay(**over: Any) -> Replay:
    settings: dict[str, Any] = {
        "workload": "t.jsonl",
        "url": "http://host",
        "model": "m",
        "rate": 2.0,
        "seed": 0,
        "block_tokens": 32,
        "scale": "1/16",
        "interrupted": False,
        "summary": summarise([], array("d"), []),
        "rows": [{"number": 0}],
    }
    return Replay(**{**settings, **over})


def write(folder: Path, found: Any) -> str:
    path = folder / "other.json"
    path.write_bytes(msgspec.json.encode(found))
    return str(path)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    reading = read_other(write(tmp_path, as_json(replay(), per_request=True)))
    assert reading.name == "other" and reading.rows == [{"number": 0}]
    assert reading.asked == {"workload": "t.jsonl", "rate": 2.0, "seed": 0, "block_tokens": 32, "token_scale": "1/16"}
    assert reading.figures["ttft"]["p50"] == 0.0
    assert read_other(write(tmp_path, as_json(replay(), per_request=False))).rows is None


def simulation(policies: int) -> dict[str, Any]:
    runs = [{"summary": {"hit_rate": 0.5}, "requests": []}] * policies
    return {"workload": "chats", "fleet": {"page_size": 512}, "rates": [{"rate": 1.0, "policies": runs}]}


def test_a_simulation_is_read(tmp_path: Path) -> None:
    reading = read_other(write(tmp_path, simulation(1)))
    assert reading.name == "other (simulated)" and reading.figures == {"hit_rate": 0.5}
    assert reading.asked == {"workload": "chats", "rate": 1.0, "block_tokens": 512}


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (simulation(2), "2 simulations; simulate one --policy at one --rate"),
        (simulation(0), "0 simulations"),
        ({"a": 1}, "neither replay's --json nor simulate's"),
        ([], "neither replay's --json nor simulate's"),
    ],
)
def test_what_is_neither_is_refused(tmp_path: Path, found: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_other(write(tmp_path, found))


@pytest.mark.parametrize("found", [b"{", b'{"workload": "\xff"}'])
def test_what_is_no_json_is_refused(tmp_path: Path, found: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(found)
    with pytest.raises(ValueError, match=r"x\.json: not JSON"):
        read_other(str(path))
