"""The study as a table, as JSON and as one HTML file."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import msgspec
import pytest

from sgl_router.config import ModelConfig, QueueConfig
from sgl_router.lab.simulate.report import render_report
from sgl_router.lab.simulate.simulation import FleetSettings
from sgl_router.lab.simulate.study import Study, as_json, run_study
from sgl_router.lab.simulate.table import format_study
from sgl_router.lab.simulate.workload import make_workload


@pytest.fixture(scope="module")
def study() -> Study:
    rows = make_workload("chats", requests=60, per_sec=4.0, seed=1)
    return run_study(
        "<chats>", rows, ["random", "cache_aware_zmq"], [1.0, 2.5], FleetSettings(workers=2, cache_tokens=8_192), seed=1
    )


def test_the_table_has_a_row_per_policy_and_bound(study: Study) -> None:
    text = format_study(study)
    for rate in ("1x", "2.5x"):
        names = [line.split()[0] for line in text.split(f"rate {rate}")[1].splitlines()[1:8] if line.strip("- ")]
        assert names[:4] == ["random", "cache_aware_zmq", "one_pooled_worker", "floor"]
    found = [line for line in text.splitlines() if line.startswith("random refused")]
    assert len(found) == 2 and found[0].endswith(" too_long")  # prompts longer than a cache of 8,192 tokens
    first = text.split("rate 1x")[1].split("rate 2.5x")[0].splitlines()
    table = [line for line in first if line.startswith(("random ", "cache", "---")) and "refused" not in line]
    assert len({len(line) for line in table}) == 1, "columns do not line up"


def test_whoever_refuses_more_is_not_best() -> None:
    rows = make_workload("unique", requests=120, per_sec=20.0, seed=1)
    queue = QueueConfig(enabled=True, max_waiting=4)
    model = ModelConfig(id="m", tokenizer_path="t", queue=queue)
    policies = ["random", "cache_aware_zmq", "kv_cost+queue"]
    study = run_study("w", rows, policies, [1.0], FleetSettings(workers=2), seed=1, model=model)
    *others, refusing = study.rates[0].summaries
    assert refusing.refused > 20 and refusing.refusals == {"queue_full": refusing.refused}
    assert refusing.ttft.mean < min(other.ttft.mean for other in others)
    table = render_report(study).split("<tbody>")[1].split("</tbody>")[0].split("</tr>")
    shown = {row.split("<td>")[1].split("</td>")[0]: row.count("best") for row in table[:-1]}
    assert shown["kv_cost+queue"] == 0 < shown["cache_aware_zmq"]
    assert f"<td>{refusing.refused}</td>" in table[2]
    text = format_study(study)
    assert "; settings of model m\n" in text
    assert f"kv_cost+queue refused {refusing.refused / 120:.1%} of requests: {refusing.refused} queue_full" in text


def test_json_has_requests_only_where_asked(study: Study) -> None:
    short, long = (
        msgspec.json.decode(msgspec.json.encode(as_json(study, per_request=wanted))) for wanted in (False, True)
    )
    assert [at["rate"] for at in short["rates"]] == [1.0, 2.5]
    assert short["fleet"]["workers"] == 2
    assert short["rates"][0]["policies"][1]["summary"]["policy"] == "cache_aware_zmq"
    assert "requests" not in short["rates"][0]["policies"][0]
    assert len(long["rates"][0]["policies"][0]["requests"]) == 60


def test_the_progress_counts_all_runs() -> None:
    seen: list[tuple[int, int, str]] = []
    rows = make_workload("unique", requests=5, per_sec=4.0, seed=1)
    policies = ["random", "round_robin"]
    run_study("w", rows, policies, [1.0], FleetSettings(), seed=1, progress=lambda *at: seen.append(at))
    assert [done for done, _, _ in seen] == list(range(1, 11))
    assert {total for _, total, _ in seen} == {10}
    assert (seen[0][2], seen[-1][2]) == ("random at 1x", "round_robin at 1x")


class Checker(HTMLParser):
    """Every tag closes in its order, and nothing is fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: dict[str, int] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not {"src", "href"} & {name for name, _ in attrs}
        assert tag != "script"
        self.count[tag] = self.count.get(tag, 0) + 1
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_is_one_file_with_four_plots_per_rate(study: Study) -> None:
    page = render_report(study)
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert checker.count["svg"] == 8
    assert checker.count["polyline"] == 16
    assert "&lt;chats&gt;" in page and "<chats>" not in page
    assert "url(" not in page and "@import" not in page
    assert "prefers-color-scheme: dark" in page
    used = set(re.findall(r"var\((--[a-z0-9-]+)\)", page))
    light, dark = page.split("@media")[0], page.split("@media")[1].split("}")[0]
    assert used <= set(re.findall(r"(--[a-z0-9-]+):", light))
    assert used <= set(re.findall(r"(--[a-z0-9-]+):", dark))
