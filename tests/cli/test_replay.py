"""`sgl-router replay` as a user calls it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sgl_router.cli.flags import duration
from sgl_router.cli.main import main
from sgl_router.lab.mock_worker import MockWorker, MockWorkerConfig

TRACE = "\n".join(
    json.dumps({"timestamp": 10 * number, "input_length": 1025, "output_length": 32, "hash_ids": [0, 1, 10 + number]})
    for number in range(12)
)
ARGUMENTS = ["--token-scale", "1/16"]

Start = Callable[..., MockWorker]


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "t.jsonl"
    path.write_text(TRACE)
    return str(path)


@pytest.fixture
def start() -> Iterator[Start]:
    """Mock workers on a loop of their own: the command blocks this thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    workers: list[MockWorker] = []

    def run(**settings: Any) -> MockWorker:
        async def begin() -> MockWorker:
            worker = MockWorker(MockWorkerConfig(**{"speed": float("inf"), **settings}))
            await worker.start()
            return worker

        workers.append(asyncio.run_coroutine_threadsafe(begin(), loop).result(240))
        return workers[-1]

    yield run
    for worker in workers:
        asyncio.run_coroutine_threadsafe(worker.stop(), loop).result(240)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logging that is set up here would outlive the test."""
    monkeypatch.setattr("sgl_router.observability.configure_logging", lambda *_: None)


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sgl_router", "replay", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, **options)


def test_a_trace_gives_a_table_and_numbers(start: Start, trace: str, tmp_path: Path) -> None:
    worker = start(page_size=32, api_key="secret")
    numbers = tmp_path / "r.json"
    arguments = ["--url", f"{worker.url}/v1", "--trace", trace, "--api-key-env", "KEY", *ARGUMENTS]
    done = run(*arguments, "--json", str(numbers), "--per-request", env={**os.environ, "KEY": "secret"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"t.jsonl to {worker.url}, model mock-model: rate 1x, blocks of 32 tokens")
    assert "12 due, 12 answered, no errors" in done.stdout
    assert "as many as meant in 100.0% of requests" in done.stdout
    (told,) = done.stderr.splitlines()
    assert told.startswith(f"sgl-router replay: 12 requests to {worker.url}, sent over 0.11 s")
    found = json.loads(numbers.read_text())
    assert found["summary"]["answered"] == len(found["requests"]) == 12
    assert found["summary"]["hit_rate"] > 0.3
    assert worker.log.last.completion_tokens == 2, "answers are scaled, too"


@pytest.mark.usefixtures("quiet")
def test_another_run_is_shown_beside_it(start: Start, trace: str, tmp_path: Path, capsys) -> None:
    worker = start(page_size=32)
    numbers = str(tmp_path / "before.json")
    arguments = ["replay", "--url", worker.url, "--model", "mock-model", "--trace", trace, *ARGUMENTS]
    assert main([*arguments, "--json", numbers]) == 0
    assert "requests" not in json.loads(Path(numbers).read_text())
    page = tmp_path / "r.html"
    assert main([*arguments, "--compare", numbers, "--rate", "2", "--html", str(page)]) == 0
    assert page.read_text().startswith("<!doctype html>")
    out = capsys.readouterr().out
    assert "before  this / other" in out
    assert "not the same question: rate 2.0 here, 1.0 there" in out


@pytest.mark.usefixtures("quiet")
def test_a_file_that_cannot_be_written_costs_no_table(start: Start, trace: str, tmp_path: Path, capsys) -> None:
    worker = start(page_size=32)
    arguments = ["replay", "--url", worker.url, "--trace", trace, *ARGUMENTS, "--json", str(tmp_path)]
    assert main(arguments) == 1
    out = capsys.readouterr()
    assert "12 due, 12 answered, no errors" in out.out
    assert f"sgl-router replay: [Errno 21] Is a directory: '{tmp_path}'" in out.err


@pytest.mark.usefixtures("quiet")
def test_status_1_where_nothing_is_answered(start: Start, trace: str, capsys) -> None:
    worker = start(api_key="secret")
    assert main(["replay", "--url", worker.url, "--model", "mock-model", "--trace", trace, *ARGUMENTS]) == 1
    assert "12 x status 401" in capsys.readouterr().out


@pytest.mark.usefixtures("quiet")
def test_status_1_where_nobody_is_there(trace: str, capsys) -> None:
    assert main(["replay", "--url", "http://127.0.0.1:9", "--trace", trace, *ARGUMENTS]) == 1
    error = capsys.readouterr().err
    assert "http://127.0.0.1:9 cannot be asked for its models" in error and "Traceback" not in error


@pytest.mark.usefixtures("quiet")
def test_ctrl_c_prints_what_there_is(start: Start, tmp_path: Path, capsys) -> None:
    worker = start(speed=1.0, decode_ms_per_token=1000.0)
    path = tmp_path / "t.jsonl"
    path.write_text(TRACE + '\n{"timestamp": 3600000, "input_length": 1, "output_length": 1, "hash_ids": [0]}')

    def interrupt() -> None:
        for _ in range(3000):
            if worker.log.total == 12:
                break
            threading.Event().wait(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    pressing = threading.Thread(target=interrupt)
    pressing.start()
    assert main(["replay", "--url", worker.url, "--model", "mock-model", "--trace", str(path), *ARGUMENTS]) == 130
    pressing.join()
    out = capsys.readouterr().out
    assert "12 due, 0 answered, 12 unfinished, no errors" in out and "s, interrupted" in out


@pytest.mark.usefixtures("quiet")
def test_a_bar_is_drawn_on_a_terminal_and_wiped(start: Start, trace: str, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    worker = start()
    assert main(["replay", "--url", worker.url, "--model", "mock-model", "--trace", trace, *ARGUMENTS]) == 0
    error = capsys.readouterr().err
    assert f"[{'#' * 32}] 12/12 ended, 0 in flight" in error
    assert error.endswith(" \r")


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("limits", "set_to"),
    [((100, 10_000), (4352, 10_000)), ((100, 200), (200, 200)), ((5000, 10_000), None), ((100, -1), (4352, -1))],
)
def test_as_many_files_may_be_open_as_requests(limits, set_to, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[int, int]] = []
    monkeypatch.setattr("resource.getrlimit", lambda what: limits)
    monkeypatch.setattr("resource.setrlimit", lambda what, limit: found.append(limit))
    main(["replay", "--url", "http://127.0.0.1:9", "--workload", "chats", *ARGUMENTS])
    assert found == ([] if set_to is None else [set_to])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--trace FILE or --workload NAME is required"),
        (["--trace", "/nowhere/t.jsonl"], "No such file"),
        (["--workload", "best"], "--workload best: expected one of shared_prompt, chats,"),
        (["--workload", "chats", "--url", "host:1"], "--url: expected an address like http://host:30000, got 'host:1'"),
        (["--workload", "chats", "--api-key-env", "NO_SUCH_KEY"], "--api-key-env NO_SUCH_KEY: the variable is not set"),
        (["--workload", "chats", "--token-scale", "1/3"], "--token-scale 1/3: blocks of 512 tokens would be 512/3"),
        (["--workload", "chats", "--json", "/nowhere/r.json"], "/nowhere/r.json: its folder does not exist"),
        (["--workload", "chats", "--html", "/nowhere/r.html"], "/nowhere/r.html: its folder does not exist"),
        (["--workload", "chats", "--compare", "/nowhere/r.json"], "No such file"),
        (["--workload", "chats", "--tokenizer", "/nowhere"], "tokenizer_path '/nowhere' does not exist"),
        (["--workload", "chats", "--token-scale", "1/3"], "; 171/512 makes them 171"),
        (["--workload", "chats", "--token-scale", "1/1024"], "; 1/512 makes them 1"),
        (["--workload", "chats", "--token-scale", "1/128"], "first blocks could not differ; 1/64 makes them 8"),
    ],
)
@pytest.mark.usefixtures("quiet")
def test_what_makes_no_sense_is_status_2(arguments: list[str], says: str, capsys) -> None:
    assert main(["replay", *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--rate", "0", "is not above 0"),
        ("--rate", "nan", "is not finite"),
        ("--timeout", "soon", "'soon' is not a number"),
        ("--max-in-flight", "0", "0 is not 1 or more"),
        ("--limit", "x", "'x' is not a whole number"),
        ("--token-scale", "2", "2 is not above 0 and at most 1"),
        ("--token-scale", "1/0", "'1/0' is not a fraction"),
    ],
)
def test_numbers_are_checked(flag: str, value: str, says: str, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["replay", "--workload", "chats", flag, value])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert flag in error and says in error


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from sgl_router.cli.main import main\n"
        "try:\n    main(['replay', '--help'])\n"
        "except SystemExit as leaving:\n    assert not leaving.code\n"
        "heavy = {'numpy', 'zmq', 'aiohttp', 'transformers', 'yaml'}\n"
        "heavy |= {'sgl_router.lab.replay', 'sgl_router.lab.simulate'}\n"
        "print('loaded:', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "answers are not fed\nback" in done.stdout
    assert done.stdout.rstrip().endswith("loaded: []")


@pytest.mark.parametrize("scale", ["1/3", "0.3", "7/1000", "1/128", "1/1024", "1/7"])
@pytest.mark.usefixtures("quiet")
def test_a_token_scale_that_fails_names_one_that_works(scale: str, capsys) -> None:
    """The values named, one after the other: the last of them is accepted."""
    arguments = ["replay", "--url", "http://127.0.0.1:9", "--workload", "chats", "--limit", "1", "--token-scale"]
    for _ in range(3):
        status = main([*arguments, scale])
        error = capsys.readouterr().err
        if "makes them" not in error:
            break
        assert status == 2
        scale = error.rpartition("; ")[2].split()[0]
    assert status == 1, "sent, and not answered"
    assert "1 requests to http://127.0.0.1:9" in error


@pytest.mark.parametrize(
    ("secs", "text"),
    [(0.0, "0 s"), (2.51, "2.5 s"), (40.2, "40 s"), (119.4, "119 s"), (500, "8 min 20 s"), (600, "10 min"),
     (11_520, "3 h 12 min")],
)  # fmt: skip
def test_durations_are_for_people(secs: float, text: str) -> None:
    assert duration(secs) == text


@pytest.mark.usefixtures("quiet")
def test_it_says_how_long_it_takes_before_it_starts(tmp_path, capsys) -> None:
    rows = [{"timestamp": at, "input_length": 512, "output_length": 1, "hash_ids": [1]} for at in (1_000, 1_003_000)]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    refused = ["--url", "http://127.0.0.1:9", "--timeout", "90"]  # no server: it ends at once, and had said before
    assert main(["replay", "--trace", str(tmp_path / "t.jsonl"), "--rate", "2", *refused]) == 1
    first = capsys.readouterr().err.splitlines()[0]
    assert "2 requests to http://127.0.0.1:9, sent over 8 min 21 s" in first
    assert "at most 90 s after that" in first
