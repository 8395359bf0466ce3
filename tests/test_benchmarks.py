"""Benchmarks that gate a change must still run: what they say is not looked at here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_decision_benchmark_runs() -> None:
    command = ["benchmarks/decision.py", "--tokens", "200", "--workers", "2", "--runs", "1", "--background", "1000"]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "first seen" in done.stdout and "next turn" in done.stdout
