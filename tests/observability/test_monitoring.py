"""The dashboard and the alert rules in monitoring/ ask only for what a router exposes."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Iterator
from enum import Enum
from itertools import combinations
from typing import Any, NamedTuple

import pytest
import yaml
from prometheus_client.core import Metric

from sgl_router.errors import ErrorCode
from sgl_router.kv_events import KvIndex
from sgl_router.observability import ForecastCollector, Metrics
from sgl_router.outcome import Outcome
from sgl_router.workers import WorkerRegistry

ROOT = pathlib.Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "monitoring/dashboard.json").read_text())
GROUPS = yaml.safe_load((ROOT / "monitoring/alerts.yaml").read_text())["groups"]
RULES = [rule for group in GROUPS for rule in group["rules"]]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}

SCRAPED = {"job", "instance"}  # labels that Prometheus adds, as it does the series `up`
VALUES: dict[tuple[str, str], type[Enum]] = {
    ("sgl_router_errors_total", "code"): ErrorCode,
    ("sgl_router_worker_requests_total", "outcome"): Outcome,
}
WORDS = {"by", "without", "on", "ignoring", "group_left", "group_right", "and", "or", "unless", "offset", "bool"}
GROUPING = {"by", "without", "on", "ignoring", "group_left", "group_right"}
TOKEN = re.compile(
    r"""(?P<space>\s+) | (?P<string>"[^"]*") | (?P<range>\[[^\]]*\]) | (?P<name>[a-zA-Z_:][\w:]*)
      | (?P<number>\d+(?:\.\d+)?(?:ms|[smhdwy])?) | (?P<op>=~|!~|!=|==|<=|>=|[-+*/%^<>=(){},])""",
    re.VERBOSE,
)


class Family(NamedTuple):
    kind: str
    labels: set[str]


def exposed() -> dict[str, Family]:
    """Every series a router can have, by name. Families know their labels before there is anything to count."""
    workers = WorkerRegistry()
    metrics = Metrics(workers, KvIndex())
    metrics.register(ForecastCollector(workers, {}, None))
    families: dict[str, Family] = {"up": Family("gauge", set())}
    for metric in metrics._registry.collect():
        labels = set(_labels(metric))
        if metric.type == "histogram":
            families[f"{metric.name}_bucket"] = Family("bucket", {*labels, "le"})
            families |= {metric.name + end: Family("counter", labels) for end in ("_sum", "_count")}
        else:
            name = f"{metric.name}_total" if metric.type == "counter" else metric.name
            families[name] = Family(metric.type, labels)
    return families


def _labels(metric: Metric) -> tuple[str, ...]:
    return tuple(metric._labelnames)  # type: ignore[attr-defined]


FAMILIES = exposed()


class Use(NamedTuple):
    """One series asked for: its matchers, the functions and aggregations it stands in, outermost first, and the labels
    it is grouped by."""

    name: str
    matchers: list[tuple[str, str, str]]
    inside: list[str]
    grouped: set[str]


def tokens(expr: str) -> list[str]:
    found, at = [], 0
    while at < len(expr):
        match = TOKEN.match(expr, at)
        assert match is not None, f"not PromQL at {expr[at:]!r}"
        at = match.end()
        if match.lastgroup != "space":
            found.append(match[0])
    return found


def uses(expr: str) -> list[Use]:
    """What an expression asks for. Aggregations have their labels in front: `sum by (le) (...)`."""
    words = tokens(re.sub(r"\$__rate_interval\b", "5m", expr))
    found: list[Use] = []
    open_: list[tuple[str, set[str]]] = []
    everywhere: set[str] = set()
    at = 0
    while at < len(words):
        word = words[at]
        if word in GROUPING:
            end = words.index(")", at)
            labels = {label for label in words[at + 2 : end] if label != ","}
            if word in ("by", "without"):
                assert words[end + 1] == "(", f"{word} comes before what it groups: {expr}"
                open_.append((words[at - 1], labels))
                at = end + 1
            else:
                everywhere |= labels
                at = end
        elif word == "(":
            open_.append(("", set()))
        elif word == ")":
            open_.pop()
        elif re.match(r"[a-zA-Z_]", word) and word not in WORDS:
            following = words[at + 1] if at + 1 < len(words) else ""
            if following == "(":
                open_.append((word, set()))
                at += 1
            elif following not in GROUPING:
                matchers = []
                if following == "{":
                    end = words.index("}", at)
                    inner = words[at + 2 : end]
                    matchers = [tuple(inner[n : n + 3]) for n in range(0, len(inner), 4)]
                    at = end
                inside = [name for name, _ in open_ if name]
                found.append(Use(word, matchers, inside, set().union(*(labels for _, labels in open_))))  # type: ignore[arg-type]
        at += 1
    assert not open_, f"unbalanced: {expr}"
    return [use._replace(grouped=use.grouped | everywhere) for use in found]


def expressions() -> Iterator[tuple[str, str]]:
    for panel in PANELS:
        for number, target in enumerate(panel["targets"]):
            yield f"{panel['title']} {number}", target["expr"]
    for rule in RULES:
        yield rule["alert"], rule["expr"]


EXPRESSIONS = dict(expressions())


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_what_is_asked_for_is_exposed(where: str) -> None:
    found = uses(EXPRESSIONS[where])
    assert found
    for use in found:
        assert use.name in FAMILIES, f"{use.name} is not exposed"
        kind, labels = FAMILIES[use.name]
        asked = {label for label, _, _ in use.matchers}
        assert asked | use.grouped <= labels | SCRAPED, f"{use.name} has the labels {sorted(labels)}"
        for label, operator, value in use.matchers:
            known = VALUES.get((use.name, label))
            if known is not None and "$" not in value:
                members = [member.value for member in known]
                wanted = value.strip('"').split("|") if operator == "=~" else [value.strip('"')]
                for one in wanted:
                    assert any(re.fullmatch(one, member) for member in members), f"no {label} is {one}"
        growing = {"rate", "increase"} & {*use.inside}
        assert kind in ("counter", "bucket") or not growing, f"{use.name} is no counter"
        if kind == "bucket":
            assert growing
            if "histogram_quantile" in use.inside:
                assert "le" in use.grouped, "without le there are no quantiles"
            else:
                assert "le" in asked, "buckets are cumulative: name one"
        else:
            assert "histogram_quantile" not in use.inside, f"{use.name} has no buckets"


def test_the_tokenizer_sees_everything_that_may_be_wrong() -> None:
    (use,) = uses('histogram_quantile(0.9, sum by (le, x) (rate(a_bucket{b=~"c|d",e!="{f}"}[$__rate_interval])))')
    assert use == ("a_bucket", [("b", "=~", '"c|d"'), ("e", "!=", '"{f}"')],
                   ["histogram_quantile", "sum", "rate"], {"le", "x"})  # fmt: skip
    both = uses("a > 0.5 and on (x) sum without (y) (rate(b[5m])) or (c unless c offset 15m)")
    assert [(use.name, use.inside, use.grouped) for use in both] == [
        ("a", [], {"x"}),
        ("b", ["sum", "rate"], {"x", "y"}),
        ("c", [], {"x"}),
        ("c", [], {"x"}),
    ]
    for wrong in ("sum(a", "a{b='c'}", "a # b"):
        with pytest.raises(AssertionError):
            uses(wrong)


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_explains_itself(panel: dict[str, Any]) -> None:
    assert "id" not in panel
    assert panel["description"] and panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    refs = [target["refId"] for target in panel["targets"]]
    assert len(set(refs)) == len(refs)
    for target in panel["targets"]:
        left = uses(target["expr"])[0].grouped - {"le"}
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) == left, "what tells series apart, all of it"
        assert target["legendFormat"]


def test_panels_do_not_overlap_and_have_names_of_their_own() -> None:
    for one, other in combinations(DASHBOARD["panels"], 2):
        a, b = one["gridPos"], other["gridPos"]
        apart = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert apart or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"], (one["title"], other["title"])
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in DASHBOARD["panels"])
    titles = [panel["title"] for panel in DASHBOARD["panels"]]
    assert len(set(titles)) == len(titles)
    below = [panel["gridPos"]["y"] for panel in DASHBOARD["panels"]]
    assert below == sorted(below), "in the order in which they are read"


def test_variables_are_defined_and_come_from_series_that_have_them() -> None:
    assert DASHBOARD["schemaVersion"] >= 38  # Grafana 10
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(DASHBOARD["panels"])))
    assert used == set(VARIABLES), "every variable, and no other"
    assert VARIABLES["datasource"]["type"] == "datasource"
    for name, variable in VARIABLES.items():
        if variable["type"] == "query":
            match = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert match is not None and match[2] == name
            (use,) = uses(match[1])
            assert name in FAMILIES[use.name].labels | SCRAPED


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names)
    for rule in RULES:
        assert re.fullmatch(r"\d+[mh]", rule["for"]), rule["alert"]
        assert rule["labels"]["severity"] in ("page", "ticket"), rule["alert"]
        said = rule["annotations"]
        assert {"summary", "description", "runbook"} == set(said), rule["alert"]
        assert all(said.values())
        for label in re.findall(r"\$labels\.(\w+)", said["summary"] + said["description"]):
            assert all(label in FAMILIES[use.name].labels | SCRAPED for use in uses(rule["expr"])), label
        path, _, anchor = said["runbook"].partition("#")
        assert anchor in anchors(ROOT / path), f"{said['runbook']} is no heading"


def anchors(page: pathlib.Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", [name for name in FAMILIES if name.startswith("sgl_router_")])
def test_names_follow_prometheus_conventions(name: str) -> None:
    kind, labels = FAMILIES[name]
    assert name.endswith("_total") == (kind == "counter" and not name.endswith(("_sum", "_count")))
    assert not re.search(r"_(ms|millis|milliseconds|minutes|hours|kb|mb|mib|gb|percent)(_|$)", name), "base units"
    assert not labels & SCRAPED, "Prometheus would rename it"
