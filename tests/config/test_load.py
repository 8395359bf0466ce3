"""From raw data to a Config: defaults, types, all problems at once, and never another exception."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import inspect

from sgl_router.config import Config, ConfigError, PolicyName, load_config, parse_config
from sgl_router.config.suggest import schema_paths

Minimal = Callable[..., dict[str, Any]]
URL = "http://127.0.0.1:30001"


def test_defaults_are_the_documented_ones(minimal: Minimal) -> None:
    loaded = parse_config(minimal())
    config = loaded.config
    assert loaded.warnings == []
    server = config.server
    assert (server.host, server.port, server.max_body_bytes) == ("127.0.0.1", 30000, 33554432)
    assert (server.shutdown_drain_secs, server.shutdown_grace_secs) == (5.0, 60.0)
    assert (config.observability.log_level, config.observability.log_format) == ("info", "text")
    (only,) = config.models
    assert (only.id, only.chat_template, only.policy) == ("tiny", None, PolicyName.CACHE_AWARE_ZMQ)
    assert (only.circuit_breaker.threshold, only.circuit_breaker.cool_down_secs) == (3, 30.0)
    aware = only.cache_aware
    assert (aware.cache_threshold, aware.balance_abs_threshold, aware.balance_rel_threshold) == (0.5, 32, 1.1)
    cost = only.kv_cost
    assert (cost.prefill_tokens_per_sec, cost.others_weight, cost.session_bonus_ms) == (8000.0, 1.0, 0.0)
    assert (cost.session_header, cost.temperature_ms, cost.slow_start_secs) == ("x-smg-routing-key", 0.0, 30.0)
    queue = only.queue
    assert (queue.enabled, queue.max_waiting, queue.max_wait_secs) == (False, 1000, 60.0)
    assert (queue.order, queue.ageing) == ("shortest_work_first", 0.1)
    reports = config.load_reports
    assert (reports.enabled, reports.interval_secs, reports.stale_after_secs) == (True, 1.0, 10.0)
    discovery = config.discovery
    assert (discovery.backend, discovery.k8s, discovery.worker_api_key_env) == ("static_urls", None, None)
    assert discovery.static_urls is not None
    assert discovery.static_urls.urls == [URL]
    proxy = config.proxy
    assert (proxy.connect_timeout_secs, proxy.request_timeout_secs) == (5.0, 300.0)
    assert proxy.stream_idle_timeout_secs == 120.0
    assert config.active_load.stale_request_timeout_secs == 600.0
    health = config.health
    assert (health.interval_secs, health.timeout_secs) == (5.0, 2.0)
    assert (health.failure_threshold, health.success_threshold) == (3, 1)
    events = config.kv_events
    assert (events.receive_high_water_mark, events.max_message_bytes) == (100000, 67108864)
    assert (events.turn_budget_ms, events.quiet_check_secs) == (2.0, 2.0)


def test_values_arrive_as_their_types(minimal: Minimal) -> None:
    raw = minimal(
        server={"port": 0, "shutdown_drain_secs": 0},
        proxy={"connect_timeout_secs": 1},
        models=[
            {"id": "a", "tokenizer_path": "org/a", "policy": "round_robin"},
            {"id": "b", "tokenizer_path": "org/b", "cache_aware": {"cache_threshold": 1}},
        ],
        discovery={"static_urls": {"urls": ["HTTP://Worker:30001/", "http://[::1]"]}},
    )
    config = parse_config(raw).config
    assert (config.server.port, config.server.shutdown_drain_secs) == (0, 0.0)
    assert isinstance(config.proxy.connect_timeout_secs, float)
    assert [one.policy for one in config.models] == [PolicyName.ROUND_ROBIN, PolicyName.CACHE_AWARE_ZMQ]
    assert config.models[1].cache_aware.cache_threshold == 1.0
    assert config.discovery.static_urls is not None
    assert config.discovery.static_urls.urls == ["http://worker:30001", "http://[::1]:80"]


def test_k8s_selectors_arrive_as_labels(minimal: Minimal) -> None:
    roles = {"prefill_selector": {"role": "prefill"}, "decode_selector": "role=decode"}
    given = {"selector": "app=sglang", "namespace": "a", "port": 30000} | roles
    section = parse_config(minimal(discovery={"backend": "k8s", "k8s": given})).config.discovery.k8s
    assert section is not None
    assert (section.selector, section.prefill_selector) == ({"app": "sglang"}, {"role": "prefill"})
    assert (section.decode_selector, section.namespace, section.port) == ({"role": "decode"}, "a", 30000)
    assert section.bootstrap_port_annotation == "sglang.ai/bootstrap-port"
    roles_only = parse_config(minimal(discovery={"backend": "k8s", "k8s": {"port": 30000} | roles}))
    assert roles_only.config.discovery.k8s is not None
    assert roles_only.config.discovery.k8s.selector is None


def test_an_emptied_section_means_its_defaults(minimal: Minimal) -> None:
    assert parse_config(minimal(server=None, proxy=None)).config == parse_config(minimal()).config


def test_all_problems_at_once(minimal: Minimal, problems: Callable[..., list[str]]) -> None:
    raw = minimal(
        server={"port": "x", "hots": "y"},
        models=[{"id": "a", "tokenizer_path": "a/b"}, 3, {"id": "a", "tokenizer_path": "", "policy": "none"}],
        discovery={"backend": "k8s", "static_urls": {"urls": ["http://a", "bad", "http://a"]}},
    )
    assert sorted(line.partition(": ")[0] for line in problems(raw)) == [
        "discovery.k8s",
        "discovery.static_urls.urls[1]",
        "discovery.static_urls.urls[2]",
        "models[1]",
        "models[2].id",
        "models[2].policy",
        "models[2].tokenizer_path",
        "server.hots",
        "server.port",
    ]


@pytest.mark.parametrize(
    "discovery",
    [{"backend": "k8s"}, {"backend": "k8s", "k8s": {"port": 0, "selektor": 1}}, {"backend": "k8s", "worker_key": "x"}],
)
def test_that_k8s_is_not_available_stands_before_what_is_wrong_with_its_section(
    minimal: Minimal, discovery: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(minimal(discovery=discovery))
    lines = str(caught.value).splitlines()
    assert lines[0] == "discovery.backend: k8s is not available yet, use static_urls"
    assert len(lines) > 1


def test_warn_is_warning(minimal: Minimal) -> None:
    assert parse_config(minimal(observability={"log_level": "warn"})).config.observability.log_level == "warning"


def test_a_file_is_read_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "router.yml"
    file.write_text(
        """
        models: [{id: tiny, tokenizer_path: org/tiny}]
        discovery: {static_urls: {urls: [http://worker:30001]}}
        proxy: {request_timeout_secs: 900}
        """
    )
    loaded = load_config(str(file))
    assert loaded.config.proxy.request_timeout_secs == 900.0
    assert len(loaded.warnings) == 1


KEYS = sorted({path.rpartition(".")[2] for path in schema_paths(inspect.type_info(Config))})
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(1).map(lambda one: one << 20_000)  # more digits than Python prints
    | st.floats()
    | st.text(max_size=20)
    | st.dates()
    | st.binary(max_size=4)
    | st.sampled_from([URL, "k8s", "static_urls", "app=sglang", "org/tiny", "/", "~", "PATH", "random"])
)
NAMES = st.sampled_from(KEYS) | st.text(max_size=8) | st.integers() | st.none()
ANYTHING = st.recursive(
    LEAVES, lambda below: st.lists(below, max_size=3) | st.dictionaries(NAMES, below, max_size=6), max_leaves=40
)


def shaped(info: inspect.Type) -> st.SearchStrategy[Any]:
    """Data of the schema's shape whose parts may be anything."""
    if isinstance(info, inspect.Metadata):
        return shaped(info.type)
    if isinstance(info, inspect.UnionType):
        return st.one_of([shaped(one) for one in info.types])
    if isinstance(info, inspect.ListType):
        return st.lists(shaped(info.item_type), max_size=3) | ANYTHING
    if isinstance(info, inspect.StructType):
        fields = {field.name: shaped(field.type) for field in info.fields}
        return st.fixed_dictionaries({}, optional=fields) | ANYTHING
    return LEAVES


@given(ANYTHING | shaped(inspect.type_info(Config)))
def test_anything_is_a_config_or_a_config_error(raw: Any) -> None:
    try:
        loaded = parse_config(raw)
    except ConfigError as error:
        assert error.errors
        assert len(str(error).splitlines()) == len(error.errors)
    else:
        assert isinstance(loaded.config, Config)


def test_importing_the_package_is_light() -> None:
    heavy = {"aiohttp", "jinja2", "numpy", "tokenizers", "transformers", "yaml", "zmq"}
    code = "import sgl_router.config, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=240)
    assert not heavy & set(done.stdout.split())
