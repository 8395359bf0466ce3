"""The shapes of /server_info: by version, with nulls, with surprises."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sgl_router.upstream.fault import WorkerFault
from sgl_router.workers import IntrospectionError, KvEventSource, WorkerInfo, WorkerMode
from sgl_router.workers.server_info import parse_model_list, parse_server_info

URL = "http://10.0.0.3:30000"
COMMON: dict[str, Any] = {
    "model_path": "/models/llama",
    "served_model_name": "llama",
    "tokenizer_path": "/models/llama",
    "disaggregation_mode": "null",
    "disaggregation_bootstrap_port": 8998,
    "page_size": 16,
    "dp_size": 1,
    "speculative_algorithm": None,
    "enable_cache_report": False,
    "random_seed": 903931570,
    "max_total_num_tokens": 4096,
    "internal_states": [{"last_gen_throughput": 0.0}],
    "api_key": "s3cret",
    "admin_api_key": "s3cret-admin",
}


def launch(**config: Any) -> str:
    return json.dumps({"publisher": "zmq", "topic": "kv", **config})


def parse(url: str = URL, **fields: Any) -> WorkerInfo:
    info = parse_server_info(json.dumps({**COMMON, **fields}).encode(), url)
    assert info is not None
    return info


BLOCK = {
    "publisher": "zmq",
    "endpoint_host": "*",
    "endpoint_port_base": 15600,
    "topic": "kv",
    "block_size": 16,
    "dp_size": 1,
}


def test_0_5_6_has_only_the_launch_argument() -> None:
    info = parse(
        version="0.5.6",
        dp_size=2,
        page_size=64,
        kv_events_config=launch(endpoint="tcp://*:5557", replay_endpoint="tcp://*:5600"),
    )
    assert info == WorkerInfo(
        served_model_name="llama",
        dp_size=2,
        block_size=64,
        version="0.5.6",
        started_at=info.started_at,
        kv_source=KvEventSource("10.0.0.3", 5557, "kv", replay_port_base=5600),
    )
    assert info.started_at and info.max_total_tokens == 4096 and info.model_path == "/models/llama"
    assert info.notes == ()


def test_0_5_12_eagle_prefill() -> None:
    info = parse(
        version="0.5.12.post1",
        disaggregation_mode="prefill",
        speculative_algorithm="EAGLE3",
        kv_events_config=launch(endpoint="tcp://[::]:6000", topic=""),
    )
    assert info.mode is WorkerMode.PREFILL and info.bootstrap_port == 8998 and info.bigram
    assert info.kv_source == KvEventSource("10.0.0.3", 6000, "")


def test_0_5_13_block_takes_replay_from_the_launch_argument() -> None:
    info = parse(
        version="0.5.13",
        dp_size=4,
        kv_events={**BLOCK, "dp_size": 4, "block_size": 32},
        kv_events_config=launch(endpoint="tcp://0.0.0.0:15600", replay_endpoint="tcp://*:15700"),
    )
    assert (info.dp_size, info.block_size) == (4, 32)
    assert info.kv_source == KvEventSource("10.0.0.3", 15600, "kv", replay_port_base=15700)
    assert info.notes == ()


def test_0_5_23_block_with_replay_and_load() -> None:
    info = parse(
        version="0.5.23",
        attn_dp_size=1,
        startup_time={
            "load_weight": 0.019,
            "scheduler_e2e": 2.09,
            "tokenizer_e2e": 11.5,
            "cuda_graph": {"decode": 0.0},
        },
        enable_cache_report=True,
        kv_events={
            **BLOCK,
            "replay_endpoint_port_base": 15700,
            "load_endpoint_port_base": 15601,
            "load_topic": "load",
        },
        kv_events_config=launch(bind=True, endpoint="tcp://*:15600", replay_endpoint="tcp://*:15700"),
    )
    assert info.kv_source == KvEventSource(
        "10.0.0.3", 15600, "kv", replay_port_base=15700, load_port_base=15601, load_topic="load"
    )
    assert info.enable_cache_report and info.mode is WorkerMode.PLAIN and info.bootstrap_port is None


def test_secrets_are_not_kept() -> None:
    assert "s3cret" not in repr(parse(kv_events=None))


def test_ranks_without_a_block_are_replicas_or_attention_groups() -> None:
    assert parse(dp_size=1, attn_dp_size=8, kv_events=None).dp_size == 8
    assert parse(dp_size=8, attn_dp_size=8, kv_events=None).dp_size == 8
    assert parse(dp_size=2, kv_events=None).dp_size == 2


@pytest.mark.parametrize("host", ["*", "0.0.0.0", "::", "[::]", "", None])
def test_wildcard_hosts_become_the_workers_own(host: str | None) -> None:
    source = parse("http://[fd00::7]:30000", kv_events={**BLOCK, "endpoint_host": host}).kv_source
    assert source is not None and source.endpoint(0) == "tcp://[fd00::7]:15600"


@pytest.mark.parametrize(
    ("algorithm", "bigram"),
    [
        (None, False),
        ("EAGLE", True),
        ("eagle3", True),
        ("NEXTN", True),
        ("STANDALONE", False),
        ("NGRAM", False),
        (7, False),
    ],
)
def test_bigram(algorithm: Any, bigram: bool) -> None:
    assert parse(speculative_algorithm=algorithm).bigram is bigram


# --- publishers nobody can subscribe to ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "endpoint", "bind", "subscribable"),
    [
        ("0.5.6", "tcp://*:5557", None, True),
        ("0.5.12", "tcp://[::]:5557", None, True),
        ("0.5.12", "tcp://[::1]:5557", None, True),  # "::" anywhere makes it bind
        ("0.5.12", "tcp://0.0.0.0:5557", None, False),
        ("0.5.12", "tcp://127.0.0.1:5557", None, False),
        ("0.5.12", "tcp://127.0.0.1:5557", True, False),  # the key is not known yet
        ("0.5.12", "tcp://router:5557", None, False),
        (None, "tcp://0.0.0.0:5557", None, False),
        (None, "tcp://127.0.0.1:5557", True, True),
        ("0.5.13", "tcp://0.0.0.0:5557", None, True),
        ("0.5.22", "tcp://10.0.0.3:5557", True, True),
        ("0.5.22", "tcp://*:5557", False, False),
        ("0.5.12", "ipc:///tmp/kv", None, False),
        ("0.5.12", "tcp://*:none", None, False),
    ],
)
def test_launch_argument_endpoints(version: str | None, endpoint: str, bind: bool | None, subscribable: bool) -> None:
    config = launch(endpoint=endpoint) if bind is None else launch(endpoint=endpoint, bind=bind)
    info = parse(version=version, kv_events_config=config)
    assert (info.kv_source is not None) == subscribable
    if not subscribable:
        assert len(info.notes) == 1 and "tcp://*:" in info.notes[0] and "without KV events" in info.notes[0]


def test_the_engines_default_endpoint() -> None:
    assert parse(version="0.5.12", kv_events_config='{"publisher": "zmq"}').kv_source == KvEventSource("10.0.0.3", 5557)


def test_a_block_is_believed_even_where_the_publisher_connects() -> None:
    info = parse(
        version="0.5.14",
        kv_events={**BLOCK, "endpoint_host": "127.0.0.1"},
        kv_events_config=launch(endpoint="tcp://127.0.0.1:15600"),
        url="http://127.0.0.1:30000",
    )
    assert info.kv_source == KvEventSource("127.0.0.1", 15600, "kv")
    assert len(info.notes) == 1 and '"endpoint": "tcp://*:15600"' in info.notes[0]


@pytest.mark.parametrize("version", ["0.5.23", None, "0.0.0.dev0"])
def test_a_bound_loopback_address_is_fine_on_the_same_machine(version: str | None) -> None:
    info = parse(
        version=version,
        kv_events={**BLOCK, "endpoint_host": "127.0.0.1"},
        kv_events_config=launch(endpoint="tcp://127.0.0.1:15600", bind=True),
        url="http://localhost:30000",
    )
    assert info.kv_source == KvEventSource("127.0.0.1", 15600, "kv") and info.notes == ()


def test_loopback_of_another_machine_is_believed_with_a_warning() -> None:
    info = parse(
        kv_events={**BLOCK, "endpoint_host": "127.0.0.1"},
        kv_events_config=launch(endpoint="tcp://127.0.0.1:15600", bind=True, replay_endpoint="tcp://127.0.0.1:15700"),
    )
    assert info.kv_source == KvEventSource("127.0.0.1", 15600, "kv", replay_port_base=15700, replay_host="127.0.0.1")
    assert ["KV event" in info.notes[0], "replay" in info.notes[1], len(info.notes)] == [True, True, 2]


# --- off, broken, surprising --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "notes"),
    [
        ({}, 0),
        ({"kv_events": None}, 0),
        ({"kv_events": None, "kv_events_config": None}, 0),
        ({"kv_events": None, "kv_events_config": '{"publisher": "null"}'}, 0),
        ({"kv_events": None, "kv_events_config": launch(endpoint="ipc:///tmp/kv")}, 1),
        ({"kv_events_config": ""}, 0),
        ({"kv_events_config": "{}"}, 0),
        ({"kv_events_config": '{"publisher": "null"}'}, 0),
        ({"kv_events_config": "{not json"}, 1),
        ({"kv_events_config": "[1]"}, 1),
        ({"kv_events_config": 7}, 0),
        ({"kv_events_config": launch(publisher="nats")}, 1),
        ({"kv_events_config": launch(endpoint="tcp://*:65535"), "dp_size": 2}, 1),
        ({"kv_events": {**BLOCK, "publisher": "nats"}}, 1),
        ({"kv_events": {**BLOCK, "publisher": "null"}}, 0),
        ({"kv_events": {}}, 0),
        ({"kv_events": {**BLOCK, "endpoint_port_base": None}}, 1),
        ({"kv_events": {**BLOCK, "endpoint_port_base": True}}, 1),
        ({"kv_events": {**BLOCK, "endpoint_port_base": 65535, "dp_size": 2}}, 1),
        ({"kv_events": {**BLOCK, "endpoint_host": "a b"}}, 1),
        ({"kv_events": "zmq"}, 1),
        ({"kv_events": [BLOCK]}, 1),
    ],
)
def test_no_events(fields: dict[str, Any], notes: int) -> None:
    info = parse(version="0.5.12", **fields)
    assert info.kv_source is None
    assert len(info.notes) == notes


def test_a_block_without_a_version_is_from_a_version_that_binds_every_wildcard() -> None:
    assert parse(version=None, kv_events=BLOCK, kv_events_config=launch(endpoint="tcp://0.0.0.0:15600")).notes == ()


def test_a_disabled_cache_is_pointed_out() -> None:
    info = parse(kv_events=BLOCK, disable_radix_cache=True)
    assert info.kv_source is not None and "radix cache is disabled" in info.notes[0]


def test_types_that_differ_but_mean_the_same() -> None:
    info = parse(dp_size="2", page_size=64.0, version=None, max_total_num_tokens="4096", kv_events=None)
    assert (info.dp_size, info.block_size, info.version, info.max_total_tokens) == (2, 64, None, 4096)
    info = parse(kv_events={**BLOCK, "endpoint_port_base": "15600", "topic": None, "block_size": None, "dp_size": None})
    assert info.kv_source == KvEventSource("10.0.0.3", 15600, "") and info.block_size == 16


def test_nulls_mean_defaults() -> None:
    info = parse_server_info(b'{"model_path": "/m", "dp_size": null, "page_size": null}', URL)
    assert info == WorkerInfo(served_model_name="", block_size_reported=False)
    assert info is not None and info.model_path == "/m"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dp_size": 0}, "dp_size: expected a whole number from 1 to 1024, got 0"),
        ({"dp_size": 1025}, "got 1025"),
        ({"dp_size": "many"}, "got 'many'"),
        ({"dp_size": True}, "got True"),
        ({"dp_size": 1.5}, "got 1.5"),
        ({"dp_size": [2]}, "dp_size"),
        ({"attn_dp_size": -1}, "attn_dp_size"),
        ({"page_size": 0}, "page_size: expected a whole number from 1 to 65536, got 0"),
        ({"page_size": 65537}, "page_size"),
        ({"kv_events": {**BLOCK, "block_size": -16}}, "kv_events.block_size"),
        ({"kv_events": {**BLOCK, "dp_size": 4096}}, "kv_events.dp_size"),
        ({"disaggregation_mode": "both"}, "disaggregation_mode"),
        ({"disaggregation_mode": 1}, "disaggregation_mode"),
        ({"served_model_name": "x" * 513}, "served_model_name"),
        ({"dp_size": "9" * 5000}, "dp_size"),
    ],
)
def test_values_out_of_range_are_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(IntrospectionError) as caught:
        parse(**fields)
    assert caught.value.fault is WorkerFault.INVALID
    assert words in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b"null", b"7", b'"x"', b"\xff\xfe", b'{"a":', b'{"model_path":"\x80"}', b"[" * 100_000],
)
def test_other_bodies_are_malformed(body: bytes) -> None:
    with pytest.raises(IntrospectionError) as caught:
        parse_server_info(body, URL)
    assert caught.value.fault is WorkerFault.MALFORMED


@pytest.mark.parametrize("body", [b"{}", b'{"vllm_config": {"model": "x"}}', b'{"status": "ok", "dp_size": "?"}'])
def test_anothers_json_is_not_sglangs(body: bytes) -> None:
    assert parse_server_info(body, URL) is None


# --- identity -----------------------------------------------------------------------------------------------------

STARTUP = {"scheduler_e2e": 2.093, "tokenizer_e2e": 11.5}


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({}, True),
        ({"random_seed": 2}, False),
        ({"startup_time": {**STARTUP, "scheduler_e2e": 2.094}}, False),
        ({"startup_time": {**STARTUP, "tokenizer_e2e": 9.9}}, True),  # each frontend process has its own
        ({"startup_time": 1700000000.5}, False),
        ({"page_size": 32}, False),
        ({"dp_size": 2}, False),
        ({"disaggregation_mode": "decode"}, False),
        ({"served_model_name": "other"}, False),
        ({"kv_events": BLOCK}, False),
        ({"version": "0.5.24"}, False),
        ({"model_path": "/models/updated"}, True),  # a weight update, announced by a cleared cache
        ({"max_total_num_tokens": 1}, True),
        ({"internal_states": []}, True),
    ],
)
def test_what_makes_another_incarnation(change: dict[str, Any], same: bool) -> None:
    base = {"startup_time": STARTUP, "kv_events": None, "version": "0.5.23"}
    assert (parse(**base) == parse(**{**base, **change})) is same


def test_without_a_trace_of_its_start_a_worker_has_no_fingerprint() -> None:
    assert parse(random_seed=None, startup_time=None).started_at is None


# --- /v1/models ---------------------------------------------------------------------------------------------------


def test_model_list() -> None:
    assert parse_model_list(b'{"data": [{"id": "a", "root": "/m"}, {"id": "b"}]}') == ("a", "/m")
    assert parse_model_list(b'{"data": [{"id": "a", "root": null}]}') == ("a", None)


@pytest.mark.parametrize(
    "body", [b"{}", b'{"data": []}', b'{"data": [{}]}', b'{"data": [{"id": 7}]}', b'{"data": 1}', b"-"]
)
def test_unusable_model_lists(body: bytes) -> None:
    with pytest.raises(IntrospectionError):
        parse_model_list(body)
