"""Reading the body of /server_info, in the shape of every SGLang version since 0.5.6. Pure.

Only the fields named here are ever decoded: the body carries the worker's API keys in clear text.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, NoReturn

import msgspec
from msgspec import UNSET, Struct

from sgl_router.discovery.base import WorkerMode
from sgl_router.upstream.fault import WorkerFault
from sgl_router.workers.addresses import is_dialable, is_loopback, is_wildcard, split_tcp, url_host
from sgl_router.workers.info import WorkerInfo
from sgl_router.workers.kv_source import KvEventSource

__all__ = ["IntrospectionError", "parse_model_list", "parse_server_info", "parse_version"]

MAX_DP_SIZE = 1024
MAX_BLOCK_SIZE = 65536
MAX_NAME_CHARS = 512
_MODES = {"null": WorkerMode.PLAIN, "prefill": WorkerMode.PREFILL, "decode": WorkerMode.DECODE}
_BIGRAM_ALGORITHMS = ("EAGLE", "NEXTN", "FROZEN_KV_MTP")
_VERSION = re.compile(r"v?(\d+)\.(\d+)\.(\d+)")


class IntrospectionError(Exception):
    """The worker cannot be used (yet). The text is for operators and names no address and no secret."""

    def __init__(self, fault: WorkerFault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


class _Body(Struct):
    """Typed loosely on purpose: each field is checked where it is read, with a message that names it."""

    served_model_name: Any = None
    model_path: Any = None
    disaggregation_mode: Any = None
    disaggregation_bootstrap_port: Any = None
    dp_size: Any = None
    attn_dp_size: Any = None
    page_size: Any = None
    speculative_algorithm: Any = None
    version: Any = None
    startup_time: Any = None
    random_seed: Any = None
    max_total_num_tokens: Any = None
    enable_cache_report: Any = None
    disable_radix_cache: Any = None
    kv_events: Any = UNSET
    kv_events_config: Any = None


class _Model(Struct):
    id: Any = None
    root: Any = None


class _ModelList(Struct):
    data: list[_Model] = []


def parse_server_info(body: bytes, url: str) -> WorkerInfo | None:
    """None where the JSON is not SGLang's. `served_model_name` is "" where the body has none.

    `url`: the worker's own, normalised; it stands in for wildcard hosts.
    """
    raw = _decode(body, _Body, "/server_info")
    name, path = _text(raw.served_model_name), _text(raw.model_path)
    if not name and not path and raw.disaggregation_mode is None:
        return None
    if len(name) > MAX_NAME_CHARS:
        _invalid("served_model_name", name, f"at most {MAX_NAME_CHARS} characters")
    mode = _mode(raw.disaggregation_mode)
    block = raw.kv_events if isinstance(raw.kv_events, dict) else {}
    # Ranks are counted as replicas or as attention groups, by version; of two counts one is 1, or they agree.
    ranks = block.get("dp_size")
    dp_size = (
        max(_ranged("dp_size", raw.dp_size, MAX_DP_SIZE, 1), _ranged("attn_dp_size", raw.attn_dp_size, MAX_DP_SIZE, 1))
        if ranks is None
        else _ranged("kv_events.dp_size", ranks, MAX_DP_SIZE, 1)
    )
    page_size = _ranged("page_size", raw.page_size, MAX_BLOCK_SIZE, 1)
    notes: list[str] = []
    source = _kv_source(raw, url_host(url), dp_size, notes)
    if source is not None and raw.disable_radix_cache is True:
        notes.append("KV events are configured but the radix cache is disabled: the worker will publish nothing")
    return WorkerInfo(
        served_model_name=name,
        mode=mode,
        dp_size=dp_size,
        block_size=_ranged("kv_events.block_size", block.get("block_size"), MAX_BLOCK_SIZE, page_size),
        block_size_reported=block.get("block_size") is not None or raw.page_size is not None,
        bigram=_text(raw.speculative_algorithm).upper().startswith(_BIGRAM_ALGORITHMS),
        version=_text(raw.version)[:64] or None,
        started_at=_fingerprint(raw),
        kv_source=source,
        bootstrap_port=None if mode is WorkerMode.PLAIN else _port(raw.disaggregation_bootstrap_port),
        max_total_tokens=_whole(raw.max_total_num_tokens),
        model_path=path or None,
        enable_cache_report=raw.enable_cache_report is True,
        keeps_prefixes=raw.disable_radix_cache is not True,
        notes=tuple(notes),
    )


def parse_model_list(body: bytes) -> tuple[str, str | None]:
    """The first model's id and root; IntrospectionError where there is none."""
    models = _decode(body, _ModelList, "/v1/models").data
    name = _text(models[0].id) if models else ""
    if not name or len(name) > MAX_NAME_CHARS:
        raise IntrospectionError(WorkerFault.INVALID, "/v1/models lists no usable model id")
    return name, _text(models[0].root) or None


def _kv_source(raw: _Body, host: str, dp_size: int, notes: list[str]) -> KvEventSource | None:
    """From the `kv_events` block where the version has one, else from the launch argument."""
    config = _launch_config(raw.kv_events_config, notes)
    if raw.kv_events is UNSET:
        return _source_from_launch_config(config, host, dp_size, parse_version(raw.version), notes)
    if raw.kv_events is None:
        if config.get("publisher", "null") != "null":
            notes.append("KV events are configured but not advertised: their endpoint must be tcp://*:PORT")
        return None
    if not isinstance(raw.kv_events, dict):
        notes.append("kv_events is not an object: routed without KV events")
        return None
    return _source_from_block(raw.kv_events, config, host, dp_size, parse_version(raw.version), notes)


def _source_from_block(
    block: dict[str, Any],
    config: dict[str, Any],
    host: str,
    dp_size: int,
    version: tuple[int, int, int] | None,
    notes: list[str],
) -> KvEventSource | None:
    if not _publishes_over_zmq(block.get("publisher"), notes):
        return None
    port = _port_range(block.get("endpoint_port_base"), dp_size)
    if port is None:
        notes.append("kv_events.endpoint_port_base is no usable port: routed without KV events")
        return None
    advertised = _text(block.get("endpoint_host"))
    if not is_wildcard(advertised) and not is_dialable(advertised):
        notes.append("kv_events.endpoint_host is no usable host: routed without KV events")
        return None
    endpoint = config.get("endpoint")
    if split_tcp(endpoint) and not _binds(str(endpoint), config.get("bind"), version or (0, 5, 22)):
        # Believed all the same: the block is the worker's contract, and a proxy may listen where it points.
        notes.append(_connects(endpoint, port))
    # The block has no replay host, and before 0.5.22 no replay port either.
    replay_host, replay_port = split_tcp(config.get("replay_endpoint")) or ("", None)
    load_port = _port_range(block.get("load_endpoint_port_base"), dp_size)
    return KvEventSource(
        host=_dialled("KV event", advertised, host, notes) or host,
        port_base=port,
        topic=_text(block.get("topic")),
        replay_port_base=_port_range(block.get("replay_endpoint_port_base"), dp_size)
        or _port_range(replay_port, dp_size),
        replay_host=_dialled("replay", replay_host, host, notes),
        load_port_base=load_port,
        load_topic=None if load_port is None else _text(block.get("load_topic")) or "load",
    )


def _source_from_launch_config(
    config: dict[str, Any], host: str, dp_size: int, version: tuple[int, int, int] | None, notes: list[str]
) -> KvEventSource | None:
    if not _publishes_over_zmq(config.get("publisher"), notes):
        return None
    endpoint = config.get("endpoint") or "tcp://*:5557"  # the engine's default
    address = split_tcp(endpoint)
    port = _port_range(address[1], dp_size) if address else None
    if address is None or port is None:
        notes.append("the KV event endpoint is no usable TCP address (use tcp://*:PORT): routed without KV events")
        return None
    if not _binds(endpoint, config.get("bind"), version):
        notes.append(_connects(endpoint, port) + ": routed without KV events")
        return None
    replay_host, replay_port = split_tcp(config.get("replay_endpoint")) or ("", None)
    return KvEventSource(
        host=_dialled("KV event", address[0], host, notes) or host,
        port_base=port,
        topic=_text(config.get("topic")),
        replay_port_base=_port_range(replay_port, dp_size),
        replay_host=_dialled("replay", replay_host, host, notes),
    )


def _launch_config(value: Any, notes: list[str]) -> dict[str, Any]:
    """`--kv-events-config` as given at launch: a JSON string, or absent."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, str) or not value.strip():
        return {}
    try:
        config = msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError):
        config = None
    if not isinstance(config, dict):
        notes.append("kv_events_config is not a JSON object: ignored")
        return {}
    return config


def _publishes_over_zmq(publisher: Any, notes: list[str]) -> bool:
    if publisher == "zmq":
        return True
    if publisher not in (None, "null"):
        notes.append(f"the KV event publisher is {_shown(publisher)}, only zmq is understood: routed without KV events")
    return False


def _binds(endpoint: str, bind: Any, version: tuple[int, int, int] | None) -> bool:
    """The engine's own rule for its PUB socket; what it does not bind, it connects to a listening subscriber."""
    if isinstance(bind, bool) and (version is None or version >= (0, 5, 22)):
        return bind
    if "*" in endpoint or "::" in endpoint:
        return True
    return "0.0.0.0" in endpoint and version is not None and version >= (0, 5, 13)


def _connects(endpoint: Any, port: int) -> str:
    return (
        f"the KV event publisher connects to {_shown(endpoint)} instead of listening, so nobody can subscribe;"
        f' start the worker with "endpoint": "tcp://*:{port}" in --kv-events-config'
    )


def _dialled(what: str, advertised: str, own_host: str, notes: list[str]) -> str | None:
    """The advertised host where it names one; None where only the worker's URL can tell."""
    if is_wildcard(advertised):
        return None
    if is_loopback(advertised) and not is_loopback(own_host):
        notes.append(
            f"the {what} endpoint is on {advertised} of another machine, which is out of reach unless forwarded;"
            " use tcp://*:PORT in --kv-events-config"
        )
    return advertised.strip("[]")


def _fingerprint(raw: _Body) -> str | None:
    """Changes when the process does: phase durations of its start, and a seed that is random unless it was set."""
    startup = raw.startup_time
    if isinstance(startup, dict):
        # Frontend processes of one server report the scheduler's start alike, their own each for itself.
        startup = {key: value for key, value in startup.items() if key != "tokenizer_e2e"}
    if startup is None and raw.random_seed is None:
        return None
    packed = json.dumps([startup, raw.random_seed], sort_keys=True)
    return hashlib.sha256(packed.encode()).hexdigest()[:16]


def _decode(body: bytes, shape: type[Any], path: str) -> Any:
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise IntrospectionError(
            WorkerFault.MALFORMED, f"{path} answered something other than a worker's JSON"
        ) from None


def _mode(value: Any) -> WorkerMode:
    if value is None:
        return WorkerMode.PLAIN
    mode = _MODES.get(value.lower()) if isinstance(value, str) else None
    return mode if mode is not None else _invalid("disaggregation_mode", value, '"null", "prefill" or "decode"')


def _ranged(name: str, value: Any, most: int, default: int) -> int:
    if value is None:
        return default
    number = _whole(value)
    if number is None or not 1 <= number <= most:
        _invalid(name, value, f"a whole number from 1 to {most}")
    return number


def _whole(value: Any) -> int | None:
    """An integer, also where it was written as a float or a string."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and len(value) <= 20 and value.strip().isascii() and value.strip().isdigit():
        return int(value)
    return None


def _port(value: Any) -> int | None:
    return _port_range(value, 1)


def _port_range(value: Any, count: int) -> int | None:
    """A port with room for `count` ports from it on."""
    port = _whole(value)
    return port if port is not None and 1 <= port <= 65536 - count else None


def parse_version(value: Any) -> tuple[int, int, int] | None:
    """As an engine tells it. None for what is none, and for development builds that call themselves 0.0.0."""
    found = _VERSION.match(value) if isinstance(value, str) else None
    numbers = (int(found[1]), int(found[2]), int(found[3])) if found else (0, 0, 0)
    return numbers if numbers != (0, 0, 0) else None


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _invalid(name: str, value: Any, expected: str) -> NoReturn:
    raise IntrospectionError(WorkerFault.INVALID, f"/server_info: {name}: expected {expected}, got {_shown(value)}")
