"""The lane's options and fixtures: two real workers and the daemon, started once, emptied before each test."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))

from kit.engine import MODEL, Engine, running
from kit.provision import Environment
from kit.worker import WorkerClient
from lane.fleet import Fleet
from lane.router import Router

RANKED_KEY = "sk-lane-7f3a9d"
_HERE = Path(__file__).resolve().parent
_LEFT_OUT = pytest.StashKey[list[str]]()
_NUMBERS = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("engine", "real-engine lane")
    group.addoption("--engine-url", action="append", default=[], help="a worker to test against; give two or more")
    group.addoption("--engine-model", help="the model name they serve (default: what the first one says)")
    group.addoption("--engine-tokenizer", help="tokenizer folder or hub id (default: what the first one says)")
    group.addoption("--engine-api-key-env", help="environment variable that holds their --api-key")
    group.addoption(
        "--server", action="append", default=[], metavar="KEY=VALUE", help="a key of the router's section `server`"
    )


def pytest_configure(config: pytest.Config) -> None:
    for setting in config.getoption("--server"):
        key, _, value = setting.partition("=")
        Router.server[key] = yaml.safe_load(value)
    config.addinivalue_line("markers", "own_workers(reason): needs workers that the lane started itself")
    config.stash[_LEFT_OUT], config.stash[_NUMBERS] = [], []
    if len(config.getoption("--engine-url")) == 1:
        raise pytest.UsageError("--engine-url: two workers or more are needed to see a choice")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept, left_out = [], []
    for item in items:
        if _HERE not in item.path.parents:
            kept.append(item)
            continue
        item.add_marker(pytest.mark.engine)
        own = item.get_closest_marker("own_workers")
        if own and config.getoption("--engine-url"):
            left_out.append(item)
            config.stash[_LEFT_OUT].append(f"deselected under --engine-url: {item.name}: it {own.args[0]}")
        else:
            kept.append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    return config.stash[_LEFT_OUT]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.stash[_NUMBERS]:
        terminalreporter.section("engine lane")
        for line in config.stash[_NUMBERS]:
            terminalreporter.line(line)


@dataclass(frozen=True)
class Serving:
    """What the workers serve, and how the router is told."""

    workers: Sequence[WorkerClient]
    model: str
    tokenizer: str
    page: int
    api_key: str | None = None


@pytest.fixture(scope="session")
def environment() -> Environment:
    return Environment.default().require()


@pytest.fixture(scope="session")
def log_dir(tmp_path_factory: pytest.TempPathFactory, numbers: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("engine-lane")
    numbers.append(f"logs of the workers and the router: {folder}")
    return folder


@pytest.fixture(scope="session")
def numbers(pytestconfig: pytest.Config) -> list[str]:
    """Lines for the end of the run: what was measured, for people to read and to quote."""
    return pytestconfig.stash[_NUMBERS]


@pytest.fixture(scope="session")
def serving(pytestconfig: pytest.Config, request: pytest.FixtureRequest) -> Iterator[Serving]:
    """The operator's workers where URLs were given, two of our own otherwise, the first of them with a load channel."""
    urls = pytestconfig.getoption("--engine-url")
    if urls:
        yield _operators(pytestconfig, urls, request.getfixturevalue("numbers"))
        return
    environment, folder = (request.getfixturevalue(name) for name in ("environment", "log_dir"))
    with running(*(Engine(environment, log_dir=folder, load_channel=not n) for n in range(2))) as engines:
        seconds = ", ".join(f"{engine.startup_secs:.0f} s" for engine in engines)
        request.getfixturevalue("numbers").append(f"workers ready after {seconds}")
        yield Serving(engines, MODEL, str(environment.model), engines[0].page_size)


def _operators(config: pytest.Config, urls: Sequence[str], numbers: list[str]) -> Serving:
    variable = config.getoption("--engine-api-key-env")
    api_key = os.environ[variable] if variable else None
    workers = [WorkerClient(url, api_key) for url in urls]
    infos = [worker.server_info() for worker in workers]
    for url, info in zip(urls, infos, strict=True):
        if not info.get("kv_events"):
            pytest.exit(f"{url} publishes no KV events: start it with --kv-events-config", returncode=4)
        if not info.get("enable_cache_report"):
            pytest.exit(f"{url} does not report cached tokens: start it with --enable-cache-report", returncode=4)
    pages = {info["kv_events"]["block_size"] for info in infos}
    if len(pages) != 1:
        pytest.exit(f"the workers have different page sizes: {sorted(pages)}", returncode=4)
    first = infos[0]
    versions = sorted({info["version"] for info in infos})
    numbers.append(f"{len(workers)} workers given, sglang {', '.join(versions)}, {first['model_path']}")
    return Serving(
        workers=workers,
        model=config.getoption("--engine-model") or first["served_model_name"],
        tokenizer=config.getoption("--engine-tokenizer") or first["tokenizer_path"],
        page=pages.pop(),
        api_key=api_key,
    )


@pytest.fixture(scope="session")
def ranked_engine(environment: Environment, log_dir: Path) -> Iterator[Engine]:
    """A worker with two data-parallel ranks, an API key and a load channel."""
    folder = log_dir / "ranked"
    folder.mkdir()
    with running(Engine(environment, dp_size=2, api_key=RANKED_KEY, load_channel=True, log_dir=folder)) as (one,):
        yield one


@pytest.fixture(scope="session")
def _fleet(serving: Serving, log_dir: Path) -> Iterator[Fleet]:
    router = Router(
        log_dir,
        model=serving.model,
        tokenizer=serving.tokenizer,
        urls=[worker.url for worker in serving.workers],
        api_key=serving.api_key,
    )
    try:
        router.start()
        fleet = Fleet(router, serving.workers, serving.page)
        try:
            yield fleet
        finally:
            fleet.close()
        assert router.stop() == 0, "the router must end with status 0 on SIGTERM"
    finally:
        router.close()


@pytest.fixture
def fleet(_fleet: Fleet) -> Fleet:
    """The router in front of two idle workers, all with nothing cached."""
    _fleet.reset()
    return _fleet
