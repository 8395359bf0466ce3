"""The configuration's shape: every section, key, type, default and range. `config.example.yaml` shows it in use."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, field

from sgl_router.config.errors import Rejected
from sgl_router.config.labels import parse_annotation, parse_namespace, parse_selector
from sgl_router.config.origins import parse_origin
from sgl_router.config.template_kwargs import parse_template_kwargs
from sgl_router.config.urls import normalise_url, parse_listen_host

MAX_BYTES = 1 << 40
K8S_UNAVAILABLE = "k8s is not available yet, use static_urls"
MAX_INT32 = (1 << 31) - 1
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}\Z")


def _says(expected: str, *, parse: Callable[[Any], Any] | None = None) -> dict[str, Any]:
    """What the walk is told about a type: the words for "expected ...", and a parser that replaces the value."""
    return {"expected": expected} if parse is None else {"expected": expected, "parse": parse}


def _also(**spellings: str) -> dict[str, Any]:
    """Other spellings of an enumeration's values."""
    return {"aliases": spellings}


def _parse_model_id(text: str) -> str:
    if text != text.strip():
        raise Rejected("a model name as clients send it", "white space at an end")
    return text


def _parse_header_name(text: str) -> str:
    if not _HEADER_NAME.match(text):
        raise Rejected("the name of an HTTP header", "1 to 64 letters, digits and !#$%&'*+-.^_`|~")
    return text


ListenHost = Annotated[
    str, Meta(min_length=1, extra=_says("an address or host name to listen on", parse=parse_listen_host))
]
ModelId = Annotated[str, Meta(min_length=1, extra=_says("a model name as clients send it", parse=_parse_model_id))]
TokenizerPath = Annotated[
    str, Meta(min_length=1, extra=_says("a tokenizer: a local directory, a tokenizer.json, or a hub id like org/name"))
]
TemplatePath = Annotated[str, Meta(min_length=1, extra=_says("the path of an existing chat template file"))]
TemplateKwargs = Annotated[
    dict[str, Any],
    Meta(
        extra=_says("a mapping of chat template variables, like {enable_thinking: false}", parse=parse_template_kwargs)
    ),
]
KubeConfigPath = Annotated[str, Meta(min_length=1, extra=_says("the path of an existing kubeconfig file"))]
SnapshotPath = Annotated[str, Meta(min_length=1, extra=_says("the path of a file in an existing folder"))]
EnvName = Annotated[str, Meta(min_length=1, extra=_says("the name of an environment variable"))]
WorkerUrl = Annotated[str, Meta(extra=_says("a worker URL like http://host:30000", parse=normalise_url))]
Origin = Annotated[str, Meta(extra=_says("an origin like https://chat.example.com, or '*'", parse=parse_origin))]
Selector = Annotated[
    dict[str, str], Meta(extra=_says("a selector of equalities, {label: value}", parse=parse_selector))
]
Namespace = Annotated[str, Meta(min_length=1, extra=_says("the name of a Kubernetes namespace", parse=parse_namespace))]
Annotation = Annotated[str, Meta(min_length=1, extra=_says("the name of an annotation", parse=parse_annotation))]
Port = Annotated[int, Meta(ge=1, le=65535)]
ListenPort = Annotated[int, Meta(ge=0, le=65535, extra=_says("a port from 1 to 65535, or 0 for any free port"))]
Secs = Annotated[float, Meta(gt=0, extra=_says("a number of seconds greater than 0"))]
SecsOrZero = Annotated[float, Meta(ge=0, extra=_says("a number of seconds, 0 or more"))]
Count = Annotated[int, Meta(ge=1, le=MAX_INT32)]
Bytes = Annotated[int, Meta(ge=1024, le=MAX_BYTES)]
CacheBytes = Annotated[int, Meta(ge=0, le=MAX_BYTES)]
Processes = Annotated[int, Meta(ge=1, le=256)]
TurnBudget = Annotated[float, Meta(gt=0, le=100, extra=_says("milliseconds, above 0 and at most 100"))]
HeaderName = Annotated[str, Meta(extra=_says("the name of an HTTP header", parse=_parse_header_name))]
Millis = Annotated[float, Meta(ge=0, le=1e6, extra=_says("milliseconds, from 0 to 1,000,000"))]
Ratio = Annotated[float, Meta(ge=0, le=1)]

LogLevel = Annotated[Literal["debug", "info", "warning", "error"], Meta(extra=_also(warn="warning"))]
LogFormat = Literal["text", "json"]
QueueOrder = Literal["shortest_work_first", "fcfs"]
DiscoveryBackend = Literal["static_urls", "k8s"]


class PolicyName(str, Enum):
    """How a worker is chosen."""

    ROUND_ROBIN = "round_robin"
    RANDOM = "random"
    POWER_OF_TWO = "power_of_two"
    CACHE_AWARE_ZMQ = "cache_aware_zmq"
    KV_COST = "kv_cost"


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every section: unknown keys are refused."""


class ServerConfig(Section, frozen=True, kw_only=True):
    """Where the router listens, what it accepts, how it shuts down."""

    host: ListenHost = "127.0.0.1"
    port: ListenPort = 30000
    max_body_bytes: Bytes = 33554432
    max_buffered_bytes: Bytes | None = None
    shutdown_drain_secs: SecsOrZero = 5.0
    shutdown_grace_secs: SecsOrZero = 60.0
    processes: Processes = 1


class AdminConfig(Section, frozen=True, kw_only=True):
    """A listener of its own for operators' routes; without this section they are served beside the clients'."""

    host: ListenHost = "127.0.0.1"
    port: ListenPort


class CorsConfig(Section, frozen=True, kw_only=True):
    """Which web pages may call the client routes from a browser."""

    allowed_origins: list[Origin] = []


class ObservabilityConfig(Section, frozen=True, kw_only=True):
    """Logging, and what is kept of decisions."""

    log_level: LogLevel = "info"
    log_format: LogFormat = "text"
    decisions_kept: Annotated[int, Meta(ge=0, le=1_000)] = 1_000
    decision_cost_sample: Ratio = 0.01


class CircuitBreakerConfig(Section, frozen=True, kw_only=True):
    """When a failing worker is left alone, and for how long."""

    threshold: Count = 3
    cool_down_secs: Secs = 30.0


class CacheAwareConfig(Section, frozen=True, kw_only=True):
    """The two tests of `cache_aware_zmq`: is the load even enough, is the prefix match good enough."""

    cache_threshold: Ratio = 0.5
    balance_abs_threshold: Annotated[int, Meta(ge=0, le=MAX_INT32)] = 32
    balance_rel_threshold: Annotated[float, Meta(ge=1)] = 1.1


class KvCostConfig(Section, frozen=True, kw_only=True):
    """The weights of `kv_cost`, in milliseconds."""

    prefill_tokens_per_sec: Annotated[float, Meta(ge=1, le=10_000_000)] = 8_000.0
    others_weight: Annotated[float, Meta(ge=0, le=100)] = 1.0
    max_pressure: Annotated[float, Meta(ge=0, le=1_000)] = 16.0
    smoothing_secs: Annotated[float, Meta(ge=0.01, le=600)] = 5.0
    host_load_back_ms_per_1k_tokens: Millis = 10.0
    disk_load_back_ms_per_1k_tokens: Millis = 60.0
    decode_ms_per_1k_tokens: Millis = 3.0
    eviction_ms_per_1k_tokens: Millis = 0.0
    session_bonus_ms: Millis = 0.0
    session_header: HeaderName = "x-smg-routing-key"
    temperature_ms: Millis = 0.0
    slow_start_secs: SecsOrZero = 30.0


class QueueConfig(Section, frozen=True, kw_only=True):
    """Requests that wait in the router while every worker has enough to compute."""

    enabled: bool = False
    max_waiting: Count = 1_000
    max_wait_secs: Secs = 60.0
    order: QueueOrder = "shortest_work_first"
    priorities: bool = True
    ageing: Annotated[float, Meta(ge=0, le=1_000)] = 0.1
    release_below_ms: Millis = 20.0


class ModelConfig(Section, frozen=True, kw_only=True):
    """One served model: its tokens and how its workers are chosen."""

    id: ModelId
    tokenizer_path: TokenizerPath
    chat_template: TemplatePath | None = None
    default_chat_template_kwargs: TemplateKwargs | None = None
    conversation_cache_bytes: CacheBytes = 64 << 20
    policy: PolicyName = PolicyName.CACHE_AWARE_ZMQ
    circuit_breaker: CircuitBreakerConfig = field(default_factory=CircuitBreakerConfig)
    cache_aware: CacheAwareConfig = field(default_factory=CacheAwareConfig)
    kv_cost: KvCostConfig = field(default_factory=KvCostConfig)
    queue: QueueConfig = field(default_factory=QueueConfig)


class StaticUrlsConfig(Section, frozen=True, kw_only=True):
    """A fixed fleet."""

    urls: Annotated[list[WorkerUrl], Meta(min_length=1, extra=_says("a list of at least one worker URL"))]


class K8sConfig(Section, frozen=True, kw_only=True):
    """Worker pods by label.

    A pod is a worker if it matches `selector` (where given); the two role selectors, given together, tell prefill and
    decode pods apart. Without `selector`, a worker is what matches a role selector. No namespace means all of them.
    """

    namespace: Namespace | None = None
    selector: Selector | None = None
    prefill_selector: Selector | None = None
    decode_selector: Selector | None = None
    port: Port
    bootstrap_port_annotation: Annotation = "sglang.ai/bootstrap-port"
    kube_config: KubeConfigPath | None = None


class DiscoveryConfig(Section, frozen=True, kw_only=True):
    """Which workers should exist, and the variable that holds the key they were started with."""

    backend: DiscoveryBackend = "static_urls"
    static_urls: StaticUrlsConfig | None = None
    k8s: K8sConfig | None = None
    worker_api_key_env: EnvName | None = None


class ProxyConfig(Section, frozen=True, kw_only=True):
    """The data path's timeouts."""

    connect_timeout_secs: Secs = 5.0
    request_timeout_secs: Secs = 300.0
    stream_idle_timeout_secs: Secs = 120.0


class ActiveLoadConfig(Section, frozen=True, kw_only=True):
    """When the load of a request that never ended is given back."""

    stale_request_timeout_secs: Secs = 600.0


class LoadReportsConfig(Section, frozen=True, kw_only=True):
    """What workers say of their own load, for models whose policy goes by it."""

    enabled: bool = True
    interval_secs: Annotated[float, Meta(ge=0.05, le=600)] = 1.0
    stale_after_secs: Secs = 10.0


class HealthConfig(Section, frozen=True, kw_only=True):
    """Health probes of registered workers."""

    interval_secs: Secs = 5.0
    timeout_secs: Secs = 2.0
    failure_threshold: Count = 3
    success_threshold: Count = 1
    check_tokens: bool = True


class SnapshotConfig(Section, frozen=True, kw_only=True):
    """Where the index is kept over restarts, and who else may know it."""

    path: SnapshotPath | None = None
    interval_secs: Secs = 60.0
    peers: list[WorkerUrl] = []
    fetch_timeout_secs: Secs = 30.0


class KvEventsConfig(Section, frozen=True, kw_only=True):
    """Bounds of the KV event subscriptions."""

    receive_high_water_mark: Count = 100000
    max_message_bytes: Bytes = 67108864
    turn_budget_ms: TurnBudget = 2.0
    replay_idle_secs: Secs = 2.0
    resync_secs: Secs = 30.0
    quiet_check_secs: SecsOrZero = 2.0
    expect_ttl_secs: SecsOrZero = 10.0
    max_blocks: Count = 40000000
    snapshot: SnapshotConfig = field(default_factory=SnapshotConfig)


class Config(Section, frozen=True, kw_only=True):
    """The whole configuration."""

    server: ServerConfig = field(default_factory=ServerConfig)
    admin: AdminConfig | None = None
    cors: CorsConfig = field(default_factory=CorsConfig)
    observability: ObservabilityConfig = field(default_factory=ObservabilityConfig)
    models: Annotated[list[ModelConfig], Meta(min_length=1, extra=_says("a list of at least one model"))]
    discovery: DiscoveryConfig
    proxy: ProxyConfig = field(default_factory=ProxyConfig)
    active_load: ActiveLoadConfig = field(default_factory=ActiveLoadConfig)
    load_reports: LoadReportsConfig = field(default_factory=LoadReportsConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    kv_events: KvEventsConfig = field(default_factory=KvEventsConfig)
