"""The page: whole, self-contained, and with both runs' curves where both are known."""

from __future__ import annotations

import re
from array import array
from html.parser import HTMLParser
from typing import Any

import pytest

from sgl_router.lab.replay.call import Call, Result
from sgl_router.lab.replay.measure import rows_of, summarise
from sgl_router.lab.replay.report import render_report
from sgl_router.lab.replay.study import Reading, Replay, as_json
from sgl_router.lab.simulate.trace import TraceRow

_VOID = {"meta"}


class Balanced(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def replay(count: int, **over: Any) -> Replay:
    calls = [
        Call(
            number,
            TraceRow(0.0, 100, 5, (1,)),
            float(number),
            sent_at=number + 0.01,
            first_text_at=number + 0.2,
            finished_at=number + 1.5,
            result=Result.ANSWERED,
            prompt_tokens=100,
            cached_tokens=50,
            worker="w-<1>",
            reason="cache_hit",
        )
        for number in range(count)
    ]
    settings: dict[str, Any] = {
        "workload": "<t>.jsonl",
        "url": "http://host",
        "model": "m",
        "rate": 1.0,
        "seed": 0,
        "block_tokens": 512,
        "scale": "1",
        "interrupted": False,
        "summary": summarise(calls, array("d"), [100] * count),
        "rows": rows_of(calls),
    }
    return Replay(**{**settings, **over})


def reading(rows: list[dict[str, Any]] | None) -> Reading:
    found = as_json(replay(3), per_request=True)
    return Reading("be<fore", {"rate": 1.0}, found["summary"], rows)


@pytest.mark.parametrize("count", [0, 1, 20])
def test_the_page_is_whole_whatever_was_answered(count: int) -> None:
    page = render_report(replay(count))
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert page.count("<svg") == page.count("<polyline") == 3
    assert "<t>" not in page and "w-<1>" not in page
    assert not re.search(r"https?://(?!host)|src=|href=", page)


def test_the_other_run_is_there_as_far_as_it_is_known() -> None:
    assert render_report(replay(3), reading(replay(3).rows)).count("<polyline") == 6
    page = render_report(replay(3), reading(None))
    assert page.count("<polyline") == 3 and "<h2>Beside be&lt;fore</h2>" in page


def test_curves_show_what_happened() -> None:
    page = render_report(replay(20))
    ttft, open_requests, hits = re.findall(r'points="([^"]*)"', page)
    assert len({point.split(",")[0] for point in ttft.split()}) == 1, "all first tokens took 0.19 s"
    assert len({point.split(",")[1] for point in open_requests.split()}) == 3, "none, one or two"
    assert len({point.split(",")[1] for point in hits.split()}) == 1, "half is cached, always"


def test_simulated_requests_wait_in_the_router_too() -> None:
    simulated = [{**row, "arrival": row["arrival"] - 0.8} for row in replay(3).rows]
    for row in simulated:
        del row["result"]
    page = render_report(replay(3), reading(simulated))
    here, there = re.findall(r'points="([^" ,]*)', page)[:2]
    assert float(here) < float(there), "1 s is to the right of 0.19 s"
