"""`sgl-router simulate` as a user calls it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from sgl_router.cli.main import main

TRACE = "\n".join(
    json.dumps({"timestamp": 100 * number, "input_length": 1025, "output_length": 4, "hash_ids": [0, 1, 10 + number]})
    for number in range(20)
)


@pytest.fixture
def trace(tmp_path) -> str:
    path = tmp_path / "t.jsonl"
    path.write_text(TRACE)
    return str(path)


def test_a_trace_gives_a_table_a_report_and_numbers(trace: str, tmp_path, capsys) -> None:
    html, numbers = tmp_path / "r.html", tmp_path / "r.json"
    policies = ["--policy", "cache_aware_zmq", "--policy", "dynamo_like"]
    arguments = ["--trace", trace, *policies, "--rate", "2", "--workers", "2"]
    assert main(["simulate", *arguments, "--html", str(html), "--json", str(numbers), "--per-request"]) == 0
    out = capsys.readouterr()
    assert "t.jsonl: 20 requests; 2 workers" in out.out
    assert "cache_aware_zmq" in out.out and "dynamo_like" in out.out and "round_robin" not in out.out
    assert out.err == ""
    assert html.read_text().startswith("<!doctype html>")
    found = json.loads(numbers.read_text())
    (at,) = found["rates"]
    assert at["rate"] == 2.0
    assert len(at["policies"][0]["requests"]) == 20
    assert found["fleet"]["prefill_tokens_per_sec"] == 8000.0


def test_all_policies_are_compared_where_none_is_named(capsys) -> None:
    assert main(["simulate", "--workload", "hot_prefix", "--limit", "30"]) == 0
    out = capsys.readouterr().out
    for name in ("round_robin", "cache_aware_zmq", "dynamo_like", "min_uncached_half_queue", "late_shortest_work"):
        assert name in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--trace FILE or --workload NAME is required"),
        (["--trace", "x", "--workload", "chats"], "only one of them"),
        (["--trace", "/nowhere/t.jsonl"], "No such file"),
        (["--workload", "best"], "--workload best: expected one of shared_prompt, chats,"),
        (["--workload", "chats", "--policy", "best"], "--policy best: expected one of round_robin,"),
        (["--workload", "chats", "--block-size", "16"], "--block-size 16: made-up workloads have blocks of 512"),
        (["--workload", "chats", "--cache-tokens", "600"], "--cache-tokens 600: expected two blocks of 512 or more"),
        (["--workload", "chats", "--html", "/nowhere/r.html"], "/nowhere/r.html: its folder does not exist"),
    ],
)
def test_what_makes_no_sense_is_status_2(arguments: list[str], says: str, capsys) -> None:
    assert main(["simulate", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error


def test_a_wrong_line_of_the_trace_is_named(tmp_path, capsys) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(TRACE + '\n{"timestamp": 1, "input_length": "x", "output_length": 1, "hash_ids": []}\n')
    assert main(["simulate", "--trace", str(path)]) == 2
    assert f"{path}:21: input_length: expected an integer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--rate", "0", "is not above 0"),
        ("--rate", "nan", "is not finite"),
        ("--workers", "0", "0 is not 1 or more"),
        ("--workers", "two", "'two' is not a whole number"),
        ("--event-delay", "-1", "is negative"),
        ("--chunked-prefill-size", "-1", "is negative"),
    ],
)
def test_numbers_are_checked(flag: str, value: str, says: str, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["simulate", "--workload", "chats", flag, value])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert flag in error and says in error


def test_the_bar_is_drawn_on_a_terminal_and_wiped(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["simulate", "--workload", "unique", "--limit", "8", "--policy", "random"]) == 0
    error = capsys.readouterr().err
    assert "[################................]  50% random at 1x" in error
    assert error.endswith(" \r")


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from sgl_router.cli.main import main\n"
        "try:\n    main(['simulate', '--help'])\n"
        "except SystemExit as leaving:\n    assert not leaving.code\n"
        "heavy = {'numpy', 'zmq', 'aiohttp', 'transformers', 'yaml', 'xxhash', 'sgl_router.policies',"
        " 'sgl_router.simulate'}\n"
        "print('loaded:', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("loaded: []")
