"""One field at a time: unknown, missing, wrongly typed and out of range, each with its message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sgl_router.config import Config
from sgl_router.config.walk import INVALID, Walk

URL = "http://127.0.0.1:30001"


def model(**changes: Any) -> dict[str, Any]:
    """A valid model with keys replaced."""
    return {"models": [{"id": "tiny", "tokenizer_path": "org/tiny"} | changes]}


def k8s(**changes: Any) -> dict[str, Any]:
    """A valid k8s backend with keys replaced; None takes one out."""
    keys = {"selector": {"app": "sglang"}, "port": 30000} | changes
    section = {key: value for key, value in keys.items() if value is not None}
    return {"discovery": {"backend": "k8s", "k8s": section}}


SECTIONS = "server, admin, cors, observability, models, discovery, proxy, active_load, load_reports, health, kv_events"
KEYS_OF_SERVER = "host, port, max_body_bytes, max_buffered_bytes, shutdown_drain_secs, shutdown_grace_secs, processes"
PROBLEMS = [
    # unknown keys
    (
        model(cache_aware={"cache_treshold": 0.5}),
        "models[0].cache_aware.cache_treshold: unknown key, set to 0.5; did you mean 'cache_threshold'?",
    ),
    ({"server": {"maxBodyBytes": 1}}, "server.maxBodyBytes: unknown key, set to 1; did you mean 'max_body_bytes'?"),
    ({"modles": []}, "modles: unknown key, set to an empty list; did you mean 'models'?"),
    (
        {"server": {"request_timeout_secs": 3}},
        "server.request_timeout_secs: unknown key, set to 3; it belongs at proxy.request_timeout_secs",
    ),
    (
        {"server": {"port": 8000}, "admin": {"port": 8000}},
        "admin.port: expected another port than server.port, got 8000 (without `admin` both are served there)",
    ),
    (
        {"admin": {"host": "::"}},
        "admin.port: required but missing: expected a port from 1 to 65535, or 0 for any free port",
    ),
    ({"server": {"zzz": 1}}, f"server.zzz: unknown key, set to 1; valid keys here: {KEYS_OF_SERVER}"),
    ({"a b": "x"}, f"'a b': unknown key, set to 'x'; valid keys here: {SECTIONS}"),
    ({7: 8}, f"'7': unknown key, set to 8; valid keys here: {SECTIONS}"),
    (
        {"worker_api_key": "hunter2"},
        f"worker_api_key: unknown key, set to a value not shown here; valid keys here: {SECTIONS}",
    ),
    # missing keys
    (
        {"models": [{"tokenizer_path": "a/b"}]},
        "models[0].id: required but missing: expected a model name as clients send it",
    ),
    (
        {"discovery": {"static_urls": {}}},
        "discovery.static_urls.urls: required but missing: expected a list of at least one worker URL",
    ),
    (k8s(port=None), "discovery.k8s.port: required but missing: expected an integer from 1 to 65535"),
    # integers
    ({"server": {"port": 65536}}, "server.port: expected a port from 1 to 65535, or 0 for any free port, got 65536"),
    ({"server": {"port": -1}}, "server.port: expected a port from 1 to 65535, or 0 for any free port, got -1"),
    (
        {"server": {"port": "3"}},
        "server.port: expected a port from 1 to 65535, or 0 for any free port, got '3' "
        "(a number, not a string: no quotes, no leading zeros)",
    ),
    ({"server": {"port": True}}, "server.port: expected a port from 1 to 65535, or 0 for any free port, got true"),
    ({"server": {"port": 8e3}}, "server.port: expected a port from 1 to 65535, or 0 for any free port, got 8000.0"),
    (
        {"server": {"port": None}},
        "server.port: expected a port from 1 to 65535, or 0 for any free port, got null (leave the key out for 30000)",
    ),
    (
        {"server": {"max_buffered_bytes": 33554431}},
        "server.max_buffered_bytes: expected at least 33554432: one body of server.max_body_bytes, got 33554431",
    ),
    (
        {"server": {"max_buffered_bytes": 1 << 20, "max_body_bytes": 1 << 20, "processes": 2}},
        "server.max_buffered_bytes: expected at least 2097152: one body of server.max_body_bytes for each of the 2"
        " processes, got 1048576",
    ),
    (
        {"server": {"max_body_bytes": 1023}},
        "server.max_body_bytes: expected an integer from 1024 to 1099511627776, got 1023",
    ),
    (
        model(circuit_breaker={"threshold": 0}),
        "models[0].circuit_breaker.threshold: expected an integer from 1 to 2147483647, got 0",
    ),
    (
        model(cache_aware={"balance_abs_threshold": -1}),
        "models[0].cache_aware.balance_abs_threshold: expected an integer from 0 to 2147483647, got -1",
    ),
    (
        {"kv_events": {"turn_budget_ms": 0}},
        "kv_events.turn_budget_ms: expected milliseconds, above 0 and at most 100, got 0",
    ),
    (
        {"kv_events": {"quiet_check_secs": -1}},
        "kv_events.quiet_check_secs: expected a number of seconds, 0 or more, got -1",
    ),
    (k8s(port=0), "discovery.k8s.port: expected an integer from 1 to 65535, got 0"),
    # numbers
    (
        model(cache_aware={"cache_threshold": 1.5}),
        "models[0].cache_aware.cache_threshold: expected a number from 0 to 1, got 1.5",
    ),
    (
        model(cache_aware={"balance_rel_threshold": 0.9}),
        "models[0].cache_aware.balance_rel_threshold: expected a number of at least 1, got 0.9",
    ),
    (
        {"proxy": {"connect_timeout_secs": 0}},
        "proxy.connect_timeout_secs: expected a number of seconds greater than 0, got 0",
    ),
    (
        {"proxy": {"request_timeout_secs": float("inf")}},
        "proxy.request_timeout_secs: expected a number of seconds greater than 0, got inf (it must be finite)",
    ),
    (
        {"health": {"interval_secs": float("nan")}},
        "health.interval_secs: expected a number of seconds greater than 0, got nan (it must be finite)",
    ),
    (
        {"health": {"timeout_secs": 10**400}},
        f"health.timeout_secs: expected a number of seconds greater than 0, got {'1' + '0' * 75}...0",
    ),
    (
        {"active_load": {"stale_request_timeout_secs": False}},
        "active_load.stale_request_timeout_secs: expected a number of seconds greater than 0, got false",
    ),
    (
        {"server": {"shutdown_drain_secs": -0.1}},
        "server.shutdown_drain_secs: expected a number of seconds, 0 or more, got -0.1",
    ),
    # strings
    (
        {"models": [{"id": 3, "tokenizer_path": "a/b"}]},
        "models[0].id: expected a model name as clients send it, got 3 (quote it to make it a string)",
    ),
    (
        {"models": [{"id": "", "tokenizer_path": "a/b"}]},
        "models[0].id: expected a model name as clients send it, got ''",
    ),
    (
        {"models": [{"id": "a\tb", "tokenizer_path": "a/b"}]},
        r"models[0].id: expected a model name as clients send it, got 'a\tb' (it holds control characters)",
    ),
    (
        {"models": [{"id": "a\ud800", "tokenizer_path": "a/b"}]},
        r"models[0].id: expected a model name as clients send it, got 'a\ud800' (it holds control characters)",
    ),
    (
        {"models": [{"id": "a ", "tokenizer_path": "a/b"}]},
        "models[0].id: expected a model name as clients send it, got 'a ' (white space at an end)",
    ),
    (
        {"models": [{"id": "a", "tokenizer_path": ""}]},
        "models[0].tokenizer_path: expected a tokenizer: a local directory, a tokenizer.json, or a hub id like "
        "org/name, got ''",
    ),
    (
        {"server": {"host": ""}},
        "server.host: expected an address or host name to listen on, got ''",
    ),
    (
        {"server": {"host": "0.0.0.0:80"}},
        "server.host: expected an address or host name to listen on, like 127.0.0.1, 0.0.0.0, :: or localhost, "
        "got '0.0.0.0:80' (the port goes into server.port)",
    ),
    # booleans
    (model(queue={"enabled": 1}), "models[0].queue.enabled: expected true or false, got 1"),
    (
        model(queue={"enabled": "yes"}),
        "models[0].queue.enabled: expected true or false, got 'yes' (no quotes, and neither yes nor no)",
    ),
    (
        {"load_reports": {"enabled": None}},
        "load_reports.enabled: expected true or false, got null (leave the key out for true)",
    ),
    # the cost policy, its queue, load reports
    (
        model(kv_cost={"temperature_ms": -1}),
        "models[0].kv_cost.temperature_ms: expected milliseconds, from 0 to 1,000,000, got -1",
    ),
    (
        model(kv_cost={"prefill_tokens_per_sec": 0}),
        "models[0].kv_cost.prefill_tokens_per_sec: expected a number from 1 to 10000000, got 0",
    ),
    (
        model(kv_cost={"decode_ms_per_1k_tokens": 2e6}),
        "models[0].kv_cost.decode_ms_per_1k_tokens: expected milliseconds, from 0 to 1,000,000, got 2000000.0",
    ),
    (
        model(kv_cost={"max_pressure": float("inf")}),
        "models[0].kv_cost.max_pressure: expected a number from 0 to 1000, got inf (it must be finite)",
    ),
    (
        model(kv_cost={"session_header": "x-session: a"}),
        "models[0].kv_cost.session_header: expected the name of an HTTP header, got 'x-session: a' "
        "(1 to 64 letters, digits and !#$%&'*+-.^_`|~)",
    ),
    (
        model(kv_cost={"session_header": "x" * 65}),
        f"models[0].kv_cost.session_header: expected the name of an HTTP header, got '{'x' * 65}' "
        "(1 to 64 letters, digits and !#$%&'*+-.^_`|~)",
    ),
    (
        model(queue={"order": "lifo"}),
        "models[0].queue.order: expected one of fcfs, shortest_work_first, got 'lifo'",
    ),
    (
        model(queue={"max_waiting": 0}),
        "models[0].queue.max_waiting: expected an integer from 1 to 2147483647, got 0",
    ),
    (
        model(queue={"max_wait_secs": 0}),
        "models[0].queue.max_wait_secs: expected a number of seconds greater than 0, got 0",
    ),
    (model(queue={"ageing": -0.1}), "models[0].queue.ageing: expected a number from 0 to 1000, got -0.1"),
    (
        {"load_reports": {"interval_secs": 0.01}},
        "load_reports.interval_secs: expected a number from 0.05 to 600, got 0.01",
    ),
    (
        {"load_reports": {"stale_after_secs": 0}},
        "load_reports.stale_after_secs: expected a number of seconds greater than 0, got 0",
    ),
    # choices
    (
        {"observability": {"log_level": "WARN"}},
        "observability.log_level: expected one of debug, error, info, warning, got 'WARN' (did you mean 'warning'?)",
    ),
    ({"observability": {"log_format": 1}}, "observability.log_format: expected one of json, text, got 1"),
    (
        model(policy="cache_aware"),
        "models[0].policy: expected one of round_robin, random, power_of_two, cache_aware_zmq, kv_cost, "
        "got 'cache_aware' "
        "(did you mean 'cache_aware_zmq'?)",
    ),
    (
        model(policy=[]),
        "models[0].policy: expected one of round_robin, random, power_of_two, cache_aware_zmq, kv_cost, "
        "got an empty list",
    ),
    (
        {"discovery": {"backend": "consul", "static_urls": {"urls": [URL]}}},
        "discovery.backend: expected one of k8s, static_urls, got 'consul'",
    ),
    # shapes
    ({"models": []}, "models: expected a list of at least one model, got an empty list"),
    ({"models": {}}, "models: expected a list of at least one model, got an empty mapping"),
    (
        {"models": {"id": "m", "tokenizer_path": "o/t"}},
        "models: expected a list of at least one model, got a mapping "
        "(one entry needs its '- ' too, in TOML the heading [[models]])",
    ),
    ({"models": None}, "models: expected a list of at least one model, got null"),
    ({"server": [1]}, f"server: expected a mapping with the keys {KEYS_OF_SERVER}, got a list"),
    # URLs; test_urls.py has every reason
    (
        {"discovery": {"static_urls": {"urls": [URL, "host:30000"]}}},
        "discovery.static_urls.urls[1]: expected a worker URL like http://host:30000, got 'host:30000' "
        "(the scheme is missing: http://host:30000 ?)",
    ),
    (
        {"discovery": {"static_urls": {"urls": ["http://me:hunter2@host"]}}},
        "discovery.static_urls.urls[0]: expected a worker URL like http://host:30000, got 'http://***@host' "
        "(it holds a user name or password; set discovery.worker_api_key_env instead)",
    ),
    (
        {"discovery": {"static_urls": {"urls": [3]}}},
        "discovery.static_urls.urls[0]: expected a worker URL like http://host:30000, got 3 "
        "(quote it to make it a string)",
    ),
    (
        {"discovery": {"static_urls": {"urls": []}}},
        "discovery.static_urls.urls: expected a list of at least one worker URL, got an empty list",
    ),
    # selectors; test_labels.py has every reason
    (
        k8s(selector="app in (a)"),
        "discovery.k8s.selector: expected a selector of equalities, {label: value} or 'label=value,label2=value2', "
        "got 'app in (a)' (set-based terms, in (...) and notin (...), are not supported)",
    ),
    (
        k8s(selector={"app.kubernetes.io/name": 1}),
        "discovery.k8s.selector['app.kubernetes.io/name']: expected a label value: a string of at most 63 of "
        "A-Z a-z 0-9 - _ ., letters or digits at both ends, got 1 (quote it)",
    ),
    (
        k8s(namespace="Team_A"),
        "discovery.k8s.namespace: expected the name of a Kubernetes namespace, got 'Team_A' "
        "(at most 63 of a-z 0-9 -, letters or digits at both ends)",
    ),
    (
        k8s(bootstrap_port_annotation="a/b/c"),
        "discovery.k8s.bootstrap_port_annotation: expected the name of an annotation, like sglang.ai/bootstrap-port, "
        "got 'a/b/c'",
    ),
]


@pytest.mark.parametrize(("changes", "message"), PROBLEMS, ids=[message.partition(": ")[0] for _, message in PROBLEMS])
def test_each_problem_names_field_value_and_expectation(
    changes: dict[Any, Any], message: str, minimal: Callable[..., Any], problems: Callable[..., list[str]]
) -> None:
    assert problems(minimal(changes)) == [message]
    assert "hunter2" not in message


def test_what_is_no_mapping_at_all(problems: Callable[..., list[str]]) -> None:
    assert problems([]) == [f"(top level): expected a mapping with the keys {SECTIONS}, got an empty list"]


def test_a_reported_value_keeps_its_place(minimal: Callable[..., dict[str, Any]]) -> None:
    walk = Walk(Config)
    tree = walk.run(minimal(discovery={"static_urls": {"urls": ["bad", URL]}}))
    assert tree["discovery"]["static_urls"]["urls"] == [INVALID, URL]
    assert [error.path for error in walk.errors] == ["discovery.static_urls.urls[0]"]
