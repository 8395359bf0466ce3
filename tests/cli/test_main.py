"""The command line, without starting anything long-lived."""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import pytest
from msgspec import inspect

from sgl_router import __version__
from sgl_router.cli import main as main_module
from sgl_router.cli.gateway_flags import COMMANDS, FLAGS
from sgl_router.cli.main import main
from sgl_router.config import Config
from sgl_router.config.suggest import schema_paths

GOOD = """
models: [{id: m, tokenizer_path: some-org/some-model}]
discovery: {static_urls: {urls: ["http://127.0.0.1:30001"]}}
"""


def write(folder: pathlib.Path, text: str, name: str = "config.yaml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def test_check_accepts_a_valid_file(tmp_path, capsys) -> None:
    assert main(["--config", write(tmp_path, GOOD), "--check"]) == 0
    assert "valid (static_urls; models: m)" in capsys.readouterr().out


def test_check_accepts_toml(tmp_path, capsys) -> None:
    text = """
[[models]]
id = "m"
tokenizer_path = "some-org/some-model"
[discovery.static_urls]
urls = ["http://127.0.0.1:30001"]
"""
    assert main(["--config", write(tmp_path, text, "config.toml"), "--check"]) == 0
    assert "models: m" in capsys.readouterr().out


def test_check_says_what_will_be_fetched(tmp_path, capsys) -> None:
    (tmp_path / "here").mkdir()
    text = GOOD.replace("}]", "}, {id: n, tokenizer_path: here}]")
    assert main(["--config", write(tmp_path, text), "--check"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert lines == ["  models[0].tokenizer_path: no file or folder here, taken for a hub id: some-org/some-model"]


def test_check_refuses_what_cannot_be_started(tmp_path, capsys) -> None:
    text = GOOD.partition("discovery")[0] + "discovery: {backend: k8s, k8s: {selector: {a: b}, port: 30000}}\n"
    assert main(["--config", write(tmp_path, text), "--check"]) == 2
    output = capsys.readouterr()
    assert output.err == "sgl-router: discovery.backend: k8s is not available yet, use static_urls\n"
    assert output.out == ""


@pytest.mark.parametrize("check", [True, False])
def test_a_bad_file_is_status_2_with_every_problem(tmp_path, capsys, check: bool) -> None:
    bad = GOOD.replace("static_urls: {urls", "static_urls: {url") + "server: {port: 70000, hosst: x}\n"
    assert main(["--config", write(tmp_path, bad), *(["--check"] if check else [])]) == 2
    error = capsys.readouterr().err
    for part in ("server.port", "70000", "server.hosst", "did you mean 'host'", "discovery.static_urls.url"):
        assert part in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("flag", "given"), [("--workers", "0"), ("--turns", "x"), ("--port", "65536"), ("--port", "-1")]
)
def test_a_number_that_is_none_names_the_flag_and_its_range(capsys, flag: str, given: str) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["demo", f"{flag}={given}"])
    assert exited.value.code == 2
    limits = "0 to 65535" if flag == "--port" else "1 to 64"
    assert f"argument {flag}: {given!r} is not a number from {limits}" in capsys.readouterr().err


def test_a_missing_file_is_status_2(tmp_path, capsys) -> None:
    assert main(["--config", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command that sets up logging: in a process of its own, for that outlives the call."""
    command = [sys.executable, "-m", "sgl_router", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def test_k8s_is_refused_clearly(tmp_path) -> None:
    text = """
models: [{id: m, tokenizer_path: some-org/some-model}]
discovery: {backend: k8s, k8s: {selector: {app: sglang}, port: 30000}}
"""
    path = write(tmp_path, text)
    done = run("--config", path)
    assert done.returncode == 2
    assert "k8s is not available yet" in done.stderr


def test_a_tokenizer_that_cannot_be_loaded_is_status_2(tmp_path) -> None:
    (tmp_path / "tok").mkdir()
    text = GOOD.replace("some-org/some-model", str(tmp_path / "tok")) + "server: {port: 0}\n"
    done = run("--config", write(tmp_path, text))
    assert done.returncode == 2
    assert "models[0].tokenizer_path" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("before", [["--config", "router.yaml"], ["--check"]])
@pytest.mark.parametrize("command", ["replay", "simulate"])
def test_flags_of_the_router_before_a_command_are_refused(capsys, before: list[str], command: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*before, command])
    assert caught.value.code == 2
    assert f"--config and --check before a command: {command} takes its flags after its name" in capsys.readouterr().err


def test_ctrl_c_while_the_hub_keeps_a_tokenizer_waiting(tmp_path) -> None:
    """The thread that asks the hub cannot be stopped, and is not waited for."""
    # Whoever starts the tests in the background passes on an ignored SIGINT.
    code = (
        "import signal, sys\n"
        "from sgl_router.cli.main import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as hub:
        hub.settimeout(240)
        address = f"http://127.0.0.1:{hub.getsockname()[1]}"
        env = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_ETAG_TIMEOUT": "120", "HF_HUB_OFFLINE": "0"}
        env |= {"HF_HOME": str(tmp_path), "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
        command = [sys.executable, "-c", code, "--config", write(tmp_path, GOOD + "server: {port: 0}\n")]
        process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
        try:
            asked, _ = hub.accept()  # and never answered
            process.send_signal(signal.SIGINT)
            _, error = process.communicate(timeout=120)
            asked.close()
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 130
    assert "Traceback" not in error


def test_no_arguments_is_a_usage_error(capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert "--config FILE is required" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["mock-worker", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    """What makes `--help` slow is imports, so those are what is checked: the clock of a busy machine proves nothing."""
    code = (
        "import sys\n"
        "from sgl_router.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as leaving:\n    assert not leaving.code\n"
        "heavy = {'transformers', 'tokenizers', 'fastokens', 'numpy', 'aiohttp', 'zmq', 'jinja2', 'prometheus_client',"
        " 'structlog', 'yaml', 'uvloop'}\n"
        "print('loaded:', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("loaded: []"), done.stdout
    if arguments == ["--version"]:
        assert f"sgl-router {__version__}" in done.stdout


def test_check_warns_of_models_whose_chats_are_encoded_by_code(tmp_path, capsys) -> None:
    coded, plain = tmp_path / "coded", tmp_path / "plain"
    for folder, config in ((coded, {"architectures": ["DeepseekV4ForCausalLM"]}), (plain, {"model_type": "qwen3"})):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
    text = f"""
models:
- {{id: coded, tokenizer_path: {coded}}}
- {{id: plain, tokenizer_path: {plain}}}
- {{id: far, tokenizer_path: some-org/DeepSeek-VL2-tiny}}
discovery: {{static_urls: {{urls: ["http://127.0.0.1:30001"]}}}}
"""
    assert main(["--config", write(tmp_path, text), "--check"]) == 0
    output = capsys.readouterr()
    warnings = [line for line in output.err.splitlines() if "by code" in line]
    assert [line.partition(": the engine")[0].rpartition(" ")[2] for line in warnings] == ["models[0]", "models[2]"]
    assert "chats of coded by code (dsv4)" in warnings[0] and "by load alone" in warnings[0]
    assert "valid (static_urls" in output.out


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        (
            ["--worker-urls", "http://a:30000", "http://b:30000", "--policy=cache_aware", "--host", "0.0.0.0"],
            [
                "--worker-urls  discovery.static_urls.urls",
                "--policy       models[].policy (cache_aware is called cache_aware_zmq)",
                "--host         server.host (127.0.0.1 by default)",
            ],
        ),
        (["launch", "--pd-disaggregation"], ["--pd-disaggregation  prefill/decode disaggregation is not supported"]),
        (["--router-dp-aware"], ["--router-dp-aware  always on"]),
        (["--config", "c.yaml", "--port", "1"], ["--port  server.port"]),
        (["--service-discovery"], ["--service-discovery  service discovery is not available yet"]),
    ],
)
def test_flags_of_the_gateway_name_what_takes_their_place(capsys, arguments: list[str], rows: list[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    assert exited.value.code == 2
    error = capsys.readouterr().err
    assert "sgl-router --config FILE" in error and "docs/migrating.md" in error
    told = [line.strip() for line in error.splitlines() if line.startswith("  ")]
    assert len(told) == len(rows)
    assert all(line.startswith(row) for line, row in zip(told, rows, strict=True)), told


def test_flags_after_a_command_are_its_own(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["demo", "--policy", "cache_aware"])
    assert "argument --policy: invalid choice" in capsys.readouterr().err


def guide_rows() -> list[tuple[list[str], str]]:
    """Of the table of flags in docs/migrating.md: the flags of a row, and what stands in its second column."""
    text = (pathlib.Path(__file__).parents[2] / "docs/migrating.md").read_text()
    table = text.partition("\n## Flags\n")[2].partition("\n## ")[0]
    rows = []
    for line in table.splitlines():
        if line.startswith("| `--"):
            _, flags, keys, _ = line.split("|", 3)
            rows.append((re.findall(r"--[a-z0-9*-]+", flags), keys))
    return rows


def test_the_guide_and_the_command_line_say_the_same_of_a_flag() -> None:
    rows = guide_rows()
    assert len(rows) > 25
    for flags, told in rows:
        keys: set[str] = set()
        for flag in flags:
            meant = [name for name in FLAGS if re.fullmatch(flag.replace("*", ".*"), name)]
            assert meant, f"{flag} is in the guide only"
            keys |= {key for name in meant for key in FLAGS[name].keys}
        words = re.findall(r"`([a-z_.\[\]]+)[`:]", told)
        for key in keys:
            assert any(f".{key}".endswith(f".{word}") for word in words) or told == " none ", f"{flags}: no {key}"
        for word in words:
            if "." in word:
                assert any(f".{key}".endswith(f".{word}") for key in keys), f"{flags}: {word} is the guide's only"


def test_every_key_that_a_flag_names_is_in_the_schema() -> None:
    paths = set(schema_paths(inspect.type_info(Config)))
    for flag, found in FLAGS.items():
        assert found.keys or found.note, flag
        assert set(found.keys) <= paths, flag
        assert flag.startswith("--")
    commands = set(main_module._parser()._subparsers._group_actions[0].choices)  # type: ignore[union-attr]
    assert commands == set(COMMANDS)
