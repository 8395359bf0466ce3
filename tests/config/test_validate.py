"""Rules between fields and with the world: duplicates, sections that need each other, files, environment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sgl_router.config import load_config, parse_config

Minimal = Callable[..., dict[str, Any]]
Problems = Callable[..., list[str]]
URL = "http://127.0.0.1:30001"


def model(**changes: Any) -> dict[str, Any]:
    """A valid model with keys replaced."""
    return {"models": [{"id": "tiny", "tokenizer_path": "org/tiny"} | changes]}


def k8s(**changes: Any) -> dict[str, Any]:
    """A valid k8s backend with keys replaced; None takes one out."""
    keys = {"selector": {"app": "sglang"}, "port": 30000} | changes
    section = {key: value for key, value in keys.items() if value is not None}
    return {"discovery": {"backend": "k8s", "k8s": section}}


PROBLEMS = [  # duplicates
    (
        {"models": [{"id": "a", "tokenizer_path": "a/b"}, {"id": "a", "tokenizer_path": "a/c"}]},
        "models[1].id: expected distinct model ids, got 'a' (the same as models[0].id)",
    ),
    (
        {"discovery": {"static_urls": {"urls": ["http://a", "http://b", "HTTP://A:80/"]}}},
        "discovery.static_urls.urls[2]: expected distinct worker URLs, got 'http://a:80' "
        "(the same as discovery.static_urls.urls[0])",
    ),
    # a queue and its policy
    (
        model(queue={"enabled": True}),
        "models[0].queue.enabled: expected false, or models[0].policy kv_cost, got true "
        "(models[0].policy is cache_aware_zmq: only kv_cost can tell who should go first, and where to)",
    ),
    (
        model(queue={"enabled": True}, policy="round_robin"),
        "models[0].queue.enabled: expected false, or models[0].policy kv_cost, got true "
        "(models[0].policy is round_robin: only kv_cost can tell who should go first, and where to)",
    ),
    # backends and their sections
    (
        {"discovery": {}},
        "discovery.static_urls: required but missing: expected a mapping with the key urls, "
        "since discovery.backend is static_urls",
    ),
    (
        {"discovery": {"backend": "k8s"}},
        "discovery.k8s: required but missing: expected a mapping with the keys selector and port, "
        "since discovery.backend is k8s",
    ),
    (
        k8s(selector=None),
        "discovery.k8s.selector: required but missing: expected the labels of worker pods, here or in prefill_selector "
        "and decode_selector",
    ),
    (
        k8s(prefill_selector="role=prefill"),
        "discovery.k8s.decode_selector: required but missing: expected prefill_selector and decode_selector together, "
        "or neither",
    ),
    (
        k8s(decode_selector="role=decode"),
        "discovery.k8s.prefill_selector: required but missing: expected prefill_selector and decode_selector together, "
        "or neither",
    ),
    (
        k8s(prefill_selector="role=x", decode_selector="role=x"),
        "discovery.k8s.prefill_selector: expected pods of one role only, got 'role=x' (they are the same)",
    ),
    (
        k8s(prefill_selector="a=b,role=x", decode_selector="a=b"),
        "discovery.k8s.decode_selector: expected pods of one role only, got 'a=b' "
        "(it matches every pod the other one does)",
    ),
    (
        k8s(prefill_selector="app=other", decode_selector="role=decode"),
        "discovery.k8s.prefill_selector: expected labels that agree with discovery.k8s.selector, got 'app=other' "
        "(selector asks for app=sglang, so no pod can match)",
    ),
    # environment
    (
        {"discovery": {"static_urls": {"urls": [URL]}, "worker_api_key_env": "NOT_SET"}},
        "discovery.worker_api_key_env: expected the name of an environment variable that is set, got NOT_SET "
        "(NOT_SET is not set)",
    ),
    (
        {"discovery": {"static_urls": {"urls": [URL]}, "worker_api_key_env": "EMPTY"}},
        "discovery.worker_api_key_env: expected the name of an environment variable with a key, got EMPTY "
        "(EMPTY is empty)",
    ),
    (
        {"discovery": {"static_urls": {"urls": [URL]}, "worker_api_key_env": "LINE_END"}},
        "discovery.worker_api_key_env: expected the name of an environment variable with a key, got LINE_END "
        "(LINE_END holds spaces, a line end or other characters no HTTP header takes)",
    ),
    (
        {"discovery": {"static_urls": {"urls": [URL]}, "worker_api_key_env": "sk-hunter2"}},
        "discovery.worker_api_key_env: expected the name of an environment variable, not the key itself, "
        "got a value not shown here",
    ),
]
ENV = {"EMPTY": "", "LINE_END": "hunter2\n", "KEY": "sk-hunter2"}


@pytest.mark.parametrize(("changes", "message"), PROBLEMS, ids=[message.partition(": ")[0] for _, message in PROBLEMS])
def test_each_problem_names_field_value_and_expectation(
    changes: dict[Any, Any], message: str, minimal: Minimal, problems: Problems
) -> None:
    assert problems(minimal(changes), env=ENV) == [message]
    assert "hunter2" not in message


def test_a_worker_key_that_is_set_passes(minimal: Minimal) -> None:
    raw = minimal(discovery={"static_urls": {"urls": [URL]}, "worker_api_key_env": "KEY"})
    assert parse_config(raw, env=ENV).config.discovery.worker_api_key_env == "KEY"


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        (
            {"proxy": {"request_timeout_secs": 600}},
            "active_load.stale_request_timeout_secs: 600 is not greater than proxy.request_timeout_secs (600): "
            "requests will be expired as stale before they time out",
        ),
        (
            {"proxy": {"request_timeout_secs": 2, "connect_timeout_secs": 2.5}},
            "proxy.connect_timeout_secs: 2.5 is greater than proxy.request_timeout_secs (2) and cannot take effect",
        ),
        (
            {"discovery": {"static_urls": {"urls": [URL]}, "k8s": {"selector": "a=b", "port": 1}}},
            "discovery.k8s: ignored, discovery.backend is static_urls",
        ),
        (
            {"discovery": {"backend": "k8s", "static_urls": {"urls": [URL]}, "k8s": {"selector": "a=b", "port": 1}}},
            "discovery.static_urls: ignored, discovery.backend is k8s",
        ),
        (
            model(policy="random", kv_cost={"temperature_ms": 5}),
            "models[0].kv_cost: ignored, models[0].policy is random",
        ),
        (
            model(policy="kv_cost", cache_aware={"cache_threshold": 0.3}),
            "models[0].cache_aware: ignored, models[0].policy is kv_cost",
        ),
        (
            model(policy="kv_cost", queue={"enabled": True, "max_wait_secs": 301}),
            "models[0].queue.max_wait_secs: 301 is greater than proxy.request_timeout_secs (300): "
            "requests may wait for a worker longer than one has to answer them",
        ),
        (
            {"load_reports": {"interval_secs": 5, "stale_after_secs": 5}},
            "load_reports.stale_after_secs: 5 is not greater than load_reports.interval_secs (5): "
            "reports are stale before the next ones come",
        ),
    ],
)
def test_warnings(changes: dict[str, Any], warning: str, minimal: Minimal) -> None:
    assert parse_config(minimal(changes)).warnings == [warning]


@pytest.mark.parametrize(
    "changes",
    [
        model(policy="kv_cost", kv_cost={"temperature_ms": 5}, queue={"enabled": True}),
        model(queue={"max_wait_secs": 900}, kv_cost={"session_bonus_ms": 0}),  # off, and as by default
        model(policy="random", cache_aware={"cache_threshold": 0.5}),
        {"load_reports": {"enabled": False, "stale_after_secs": 0.5}},
    ],
)
def test_what_is_meant_is_not_warned_of(changes: dict[str, Any], minimal: Minimal) -> None:
    assert parse_config(minimal(changes)).warnings == []


def test_an_unknown_policy_is_the_only_problem_of_its_queue(minimal: Minimal, problems: Problems) -> None:
    (line,) = problems(minimal(model(policy="kv_costs", queue={"enabled": True})))
    assert line.startswith("models[0].policy: expected one of")


def test_paths_are_found_beside_the_config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, cwd = tmp_path / "etc", tmp_path / "cwd"
    (folder / "tiny").mkdir(parents=True)
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    (folder / "chat.jinja").write_text("here")
    (cwd / "chat.jinja").write_text("there")
    (cwd / "tokenizer.json").write_text("{}")
    (folder / "kube").write_text("")
    (folder / "config.toml").write_text(
        """
        [[models]]
        id = "a"
        tokenizer_path = "tiny"
        chat_template = "chat.jinja"
        [[models]]
        id = "b"
        tokenizer_path = "tokenizer.json"
        [[models]]
        id = "c"
        tokenizer_path = "org/tiny"
        [discovery]
        backend = "k8s"
        k8s = {selector = {app = "sglang"}, port = 30000, kube_config = "kube"}
        """
    )
    config = load_config(folder / "config.toml").config
    assert [one.tokenizer_path for one in config.models] == [
        str(folder / "tiny"),
        str(cwd / "tokenizer.json"),
        "org/tiny",
    ]
    assert config.models[0].chat_template == str(folder / "chat.jinja")
    assert config.discovery.k8s is not None
    assert config.discovery.k8s.kube_config == str(folder / "kube")


@pytest.mark.parametrize(
    "given", ["/nowhere/tiny", "./tiny", "tokenizer.json", "a/b/c", "~nobody-here/x", "x" * 5000 + "/./"]
)
def test_tokenizers_that_are_neither_there_nor_on_a_hub(
    given: str, tmp_path: Path, minimal: Minimal, problems: Problems
) -> None:
    (line,) = problems(minimal(model(tokenizer_path=given)), base_dir=tmp_path)
    assert line.startswith("models[0].tokenizer_path: expected an existing directory or tokenizer.json, or a hub id")


def test_files_that_are_not_there_say_where_was_looked(tmp_path: Path, minimal: Minimal, problems: Problems) -> None:
    (line,) = problems(minimal(model(chat_template="chat.jinja")), base_dir=tmp_path)
    assert line == (
        "models[0].chat_template: expected an existing chat template file, got 'chat.jinja' "
        f"(there is none below {tmp_path} or the working directory)"
    )
    (line,) = problems(minimal(model(chat_template=str(tmp_path))), base_dir=tmp_path)
    assert line.startswith("models[0].chat_template: expected an existing chat template file, got '/")
    assert line.endswith("(there is none)")
    (line,) = problems(minimal(k8s(kube_config="kube")), base_dir=tmp_path)
    assert line.startswith("discovery.k8s.kube_config: expected an existing kubeconfig file, got 'kube'")
    (line,) = problems(minimal(model(tokenizer_path="${MODELS}/qwen")), base_dir=tmp_path)
    assert line.endswith("(environment variables are not replaced)")


def snapshot(**keys: Any) -> dict[str, Any]:
    """A valid configuration with index snapshots."""
    return {"kv_events": {"snapshot": keys}}


def test_a_snapshot_file_lies_in_a_folder_that_exists(tmp_path: Path, minimal: Minimal, problems: Problems) -> None:
    (tmp_path / "state").mkdir()
    found = parse_config(minimal(snapshot(path="state/index.kv")), base_dir=tmp_path).config.kv_events.snapshot
    assert found.path == str(tmp_path / "state" / "index.kv")
    absolute = str(tmp_path / "index.kv")
    assert parse_config(minimal(snapshot(path=absolute))).config.kv_events.snapshot.path == absolute
    assert problems(minimal(snapshot(path="no/index.kv")), base_dir=tmp_path) == [
        "kv_events.snapshot.path: expected the path of a file in an existing folder, got 'no/index.kv' "
        f"(there is none below {tmp_path} or the working directory)"
    ]
    assert problems(minimal(snapshot(path="state")), base_dir=tmp_path) == [
        "kv_events.snapshot.path: expected the path of a file, got 'state' (it is a folder)"
    ]
    assert problems(minimal(snapshot(path="/")), base_dir=tmp_path) == [
        "kv_events.snapshot.path: expected the path of a file, got '/' (it is a folder)"
    ]


def test_snapshot_peers_are_distinct_urls(minimal: Minimal, problems: Problems) -> None:
    raw = minimal(snapshot(peers=["http://Router-2:30000/", "http://router-3"]))
    assert parse_config(raw).config.kv_events.snapshot.peers == ["http://router-2:30000", "http://router-3:80"]
    assert problems(minimal(snapshot(peers=["http://a", "router-2:30000", "http://a:80"]))) == [
        "kv_events.snapshot.peers[1]: expected a worker URL like http://host:30000, got 'router-2:30000' "
        "(the scheme is missing: http://router-2:30000 ?)",
        "kv_events.snapshot.peers[2]: expected distinct router URLs, got 'http://a:80' "
        "(the same as kv_events.snapshot.peers[0])",
    ]


def test_snapshots_are_off_unless_asked_for(minimal: Minimal) -> None:
    found = parse_config(minimal()).config.kv_events.snapshot
    assert (found.path, found.peers, found.interval_secs, found.fetch_timeout_secs) == (None, [], 60.0, 30.0)
