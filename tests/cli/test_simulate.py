"""`sgl-router simulate` as a user calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

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
    for name in (
        "round_robin",
        "cache_aware_zmq",
        "kv_cost ",
        "kv_cost+queue ",
        "dynamo_like",
        "min_uncached_half_queue",
        "late_shortest_work",
    ):
        assert name in out


CONFIG = """
discovery: {backend: static_urls, static_urls: {urls: ["http://127.0.0.1:1"]}}
models:
  - {id: patient, tokenizer_path: t, policy: kv_cost, queue: {enabled: true, max_waiting: 1000}}
  - {id: hasty, tokenizer_path: t, policy: kv_cost, queue: {enabled: true, max_waiting: 2}}
"""


@pytest.fixture
def config(tmp_path) -> str:
    path = tmp_path / "router.yaml"
    path.write_text(CONFIG)
    return str(path)


def refused(capsys, *arguments: str) -> int:
    crowd = ["--workload", "unique", "--requests-per-sec", "50", "--limit", "60", "--workers", "2"]
    assert main(["simulate", *crowd, "--policy", "kv_cost+queue", *arguments]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("kv_cost+queue  ")]
    return int(row.split()[1])


def test_a_models_settings_are_simulated_and_its_refusals_seen(config: str, capsys) -> None:
    assert refused(capsys) == refused(capsys, "--config", config, "--model", "patient") == 0
    assert refused(capsys, "--config", config, "--model", "hasty") > 20
    assert refused(capsys, "--config", config, "--model", "hasty", "--unbounded-queue") == 0


def test_a_configuration_must_be_good_and_leave_no_choice_open(config: str, tmp_path, capsys) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(CONFIG.replace("max_waiting: 2", "max_waiting: some"))
    for arguments, says in (
        (["--config", config], "--model NAME: " + config + " has patient, hasty; name one of them"),
        (["--config", config, "--model", "best"], "--model best: "),
        (["--config", str(wrong), "--model", "hasty"], f"{wrong} is not a valid configuration:\n  models[1].queue."),
        (["--config", "/nowhere/r.yaml"], "/nowhere/r.yaml"),
        (["--model", "hasty"], "--model is for --config FILE"),
    ):
        assert main(["simulate", "--workload", "chats", *arguments]) == 2
        error = capsys.readouterr().err
        assert says in error and "Traceback" not in error


def test_lengths_are_scaled_as_replay_scales_them(trace: str, tmp_path) -> None:
    numbers = tmp_path / "r.json"
    arguments = ["--trace", trace, "--policy", "random", "--json", str(numbers), "--per-request"]
    assert main(["simulate", *arguments, "--token-scale", "1/16", "--cache-tokens", "4096"]) == 0
    found = json.loads(numbers.read_text())
    assert found["fleet"]["page_size"] == 32
    (one, *_) = found["rates"][0]["policies"][0]["requests"]
    assert (one["input_tokens"], one["output_tokens"]) == (65, 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--trace FILE or --workload NAME is required"),
        (["--trace", "x", "--workload", "chats"], "only one of them"),
        (["--trace", "/nowhere/t.jsonl"], "No such file"),
        (["--workload", "best"], "--workload best: expected one of shared_prompt, chats,"),
        (["--workload", "chats", "--policy", "best"], "--policy best: expected one of round_robin,"),
        (["--workload", "chats", "--block-size", "16"], "--block-size 16: made-up workloads have blocks of 512"),
        (["--workload", "chats", "--token-scale", "1/3"], "--token-scale 1/3: blocks of 512 tokens would be 512/3"),
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


def test_ctrl_c_is_130_and_wipes_the_bar(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, progress: Callable[[int, int, str], None], **__: object) -> None:
        progress(1, 2, "random at 1x")
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("sgl_router.lab.simulate.study.run_study", interrupted)
    assert main(["simulate", "--workload", "unique", "--limit", "8"]) == 130
    assert capsys.readouterr().err.endswith(" \r")


def test_a_file_that_cannot_be_written_costs_no_table(tmp_path, capsys) -> None:
    arguments = ["--workload", "unique", "--limit", "8", "--policy", "random", "--json", str(tmp_path)]
    assert main(["simulate", *arguments]) == 1
    out = capsys.readouterr()
    assert "unique: 8 requests" in out.out
    assert out.err == f"sgl-router simulate: [Errno 21] Is a directory: '{tmp_path}'\n"


def test_the_numbers_are_kept_where_nobody_reads_the_table(tmp_path) -> None:
    numbers = tmp_path / "r.json"
    command = [sys.executable, "-m", "sgl_router", "simulate", "--workload", "unique", "--limit", "8"]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        subprocess.run([*command, "--json", str(numbers)], stdout=writer, stderr=subprocess.DEVNULL, timeout=240)
    finally:
        os.close(writer)
    assert json.loads(numbers.read_text())["rates"]


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from sgl_router.cli.main import main\n"
        "try:\n    main(['simulate', '--help'])\n"
        "except SystemExit as leaving:\n    assert not leaving.code\n"
        "heavy = {'numpy', 'zmq', 'aiohttp', 'transformers', 'yaml', 'xxhash', 'sgl_router.policies',"
        " 'sgl_router.lab.simulate'}\n"
        "print('loaded:', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    for name in ("kv_cost, kv_cost+queue", "late_shortest_work", "--token-scale", "--unbounded-queue"):
        assert name in " ".join(done.stdout.split())
    assert done.stdout.rstrip().endswith("loaded: []")
