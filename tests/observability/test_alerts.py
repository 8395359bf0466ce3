"""Each alert rule fires when it should and is silent when it should be: monitoring/alerts_test.yaml, by promtool."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest
import yaml

MONITORING = pathlib.Path(__file__).parents[2] / "monitoring"
RULES = [
    rule["alert"]
    for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
TESTS = yaml.safe_load((MONITORING / "alerts_test.yaml").read_text())
PROMTOOL = shutil.which("promtool")
# What CI sets: there a check that is left out is a failure.
REQUIRED = bool(os.environ.get("SGL_ROUTER_REQUIRE_PROMTOOL"))


def cases() -> Iterator[tuple[str, bool]]:
    """The alert that a case is about, and whether it has to fire."""
    for test in TESTS["tests"]:
        assert test["promql_expr_test"], test["name"]
        for case in test["promql_expr_test"]:
            found = re.fullmatch(r'ALERTS\{alertname="(\w+)", alertstate="firing"\}', case["expr"])
            assert found is not None, f"{test['name']}: {case['expr']}"
            assert test["name"].startswith(f"{found[1]} {'fires' if case['exp_samples'] else 'is silent'} ")
            yield found[1], bool(case["exp_samples"])


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_has_a_case_in_which_it_fires_and_one_in_which_it_is_silent(rule: str) -> None:
    assert {fires for name, fires in cases() if name == rule} == {True, False}


def test_no_case_is_about_a_rule_that_is_not_there() -> None:
    assert {name for name, _ in cases()} == set(RULES)
    assert TESTS["rule_files"] == ["alerts.yaml"]


@pytest.mark.skipif(PROMTOOL is None and not REQUIRED, reason="promtool is not installed (Debian: prometheus)")
@pytest.mark.parametrize("arguments", [("check", "rules", "alerts.yaml"), ("test", "rules", "alerts_test.yaml")])
def test_promtool_finds_nothing_wrong(arguments: tuple[str, ...]) -> None:
    assert PROMTOOL is not None, "SGL_ROUTER_REQUIRE_PROMTOOL is set, and there is no promtool"
    done = subprocess.run([PROMTOOL, *arguments], cwd=MONITORING, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(PROMTOOL is None and not REQUIRED, reason="promtool is not installed (Debian: prometheus)")
@pytest.mark.parametrize("broken", [("== 1", "== 2"), ("sgl_router_worker_tokens_differ", "sgl_router_no_such_series")])
def test_promtool_sees_a_rule_that_can_never_fire(broken: tuple[str, str], tmp_path: pathlib.Path) -> None:
    assert PROMTOOL is not None
    text = (MONITORING / "alerts.yaml").read_text()
    expr = "sgl_router_worker_tokens_differ == 1"
    assert text.count(expr) == 1
    (tmp_path / "alerts.yaml").write_text(text.replace(expr, expr.replace(*broken)))
    shutil.copy(MONITORING / "alerts_test.yaml", tmp_path)
    done = subprocess.run(
        [PROMTOOL, "test", "rules", "alerts_test.yaml"], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert done.returncode != 0
    assert "SglRouterTokensDiffer" in done.stdout + done.stderr
