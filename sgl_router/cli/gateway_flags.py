"""Flags of `sglang_router` (`launch_router`, `smg`), and what takes their place; docs/migrating.md says more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["COMMANDS", "FLAGS", "Counterpart", "explain_flags"]

COMMANDS = ("demo", "mock-worker", "simulate", "replay")


class Counterpart(NamedTuple):
    """`keys` of the configuration that do the same, and what else there is to say."""

    keys: tuple[str, ...] = ()
    note: str = ""


def _key(*keys: str, note: str = "") -> Counterpart:
    return Counterpart(keys, note)


def _none(note: str = "nothing takes its place") -> Counterpart:
    return Counterpart((), note)


_DISAGGREGATION = _none("prefill/decode disaggregation is not supported")
_DISCOVERY = _none("service discovery is not available yet: name the workers in discovery.static_urls.urls")
_CACHE = "models[].cache_aware"
_BREAKER = "models[].circuit_breaker"
_RETRIES = _none("not configurable: other workers are tried only where no connection could be made")
_PROXY = _none("put a reverse proxy in front of the router for that")
_TREE = _key("kv_events.max_blocks", note="workers say what they evict, nothing needs tuning")
_LIMITS = "needs policy kv_cost"
_RATE = _none("rate limits are not supported")
_METRICS = "/metrics is served on server.port where there is no section admin"
_PARSER = _none("set it at the workers: responses pass through")
_STARTUP = _none("a worker that does not answer yet is asked again, without end")

FLAGS: dict[str, Counterpart] = {
    "--host": _key("server.host", note="127.0.0.1 by default"),
    "--port": _key("server.port"),
    "--worker-urls": _key("discovery.static_urls.urls"),
    "--policy": _key("models[].policy", note="cache_aware is called cache_aware_zmq"),
    "--cache-threshold": _key(f"{_CACHE}.cache_threshold"),
    "--balance-abs-threshold": _key(f"{_CACHE}.balance_abs_threshold"),
    "--balance-rel-threshold": _key(f"{_CACHE}.balance_rel_threshold"),
    "--max-tree-size": _TREE,
    "--eviction-interval": _TREE,
    "--eviction-interval-secs": _TREE,
    "--block-size": _none("workers say their page size"),
    "--model-path": _key("models[].tokenizer_path", note="models[].id is the name that the workers serve"),
    "--model": _key("models[].tokenizer_path", note="models[].id is the name that the workers serve"),
    "--tokenizer-path": _key("models[].tokenizer_path"),
    "--chat-template": _key("models[].chat_template"),
    "--tokenizer-cache-enable-l0": _key("models[].conversation_cache_bytes"),
    "--tokenizer-cache-l0-max-entries": _key("models[].conversation_cache_bytes"),
    "--tokenizer-cache-enable-l1": _key("models[].conversation_cache_bytes"),
    "--tokenizer-cache-l1-max-memory": _key("models[].conversation_cache_bytes"),
    "--enable-igw": _key("models", note="one entry for each model"),
    "--dp-aware": _none("always on"),
    "--api-key": _key("discovery.worker_api_key_env", note="the name of a variable; clients are asked for no key"),
    "--request-timeout-secs": _key("proxy.request_timeout_secs", "proxy.stream_idle_timeout_secs"),
    "--max-payload-size": _key("server.max_body_bytes"),
    "--retry-max-retries": _RETRIES,
    "--retry-initial-backoff-ms": _RETRIES,
    "--retry-max-backoff-ms": _RETRIES,
    "--retry-backoff-multiplier": _RETRIES,
    "--retry-jitter-factor": _RETRIES,
    "--disable-retries": _RETRIES,
    "--cb-failure-threshold": _key(f"{_BREAKER}.threshold"),
    "--cb-timeout-duration-secs": _key(f"{_BREAKER}.cool_down_secs"),
    "--cb-success-threshold": _none("one good response closes a breaker"),
    "--cb-window-duration-secs": _none("failures are counted in a row, not over a time"),
    "--disable-circuit-breaker": _key(f"{_BREAKER}.threshold", note="a large one"),
    "--health-check-interval-secs": _key("health.interval_secs"),
    "--health-check-timeout-secs": _key("health.timeout_secs"),
    "--health-failure-threshold": _key("health.failure_threshold"),
    "--health-success-threshold": _key("health.success_threshold"),
    "--health-check-endpoint": _none("the router asks for what generates nothing: /ready, /model_info or /v1/models"),
    "--disable-health-check": _none("health checks are always on"),
    "--worker-startup-timeout-secs": _STARTUP,
    "--worker-startup-check-interval": _STARTUP,
    "--worker-startup-delay": _STARTUP,
    "--max-concurrent-requests": _key("models[].queue.enabled", note=f"by what workers can take; {_LIMITS}"),
    "--queue-size": _key("models[].queue.max_waiting", note=_LIMITS),
    "--queue-timeout-secs": _key("models[].queue.max_wait_secs", note=_LIMITS),
    "--rate-limit-tokens-per-second": _RATE,
    "--tenant-rate-limit-enabled": _RATE,
    "--tenant-rate-limit-config": _RATE,
    "--shutdown-grace-period-secs": _key("server.shutdown_drain_secs", "server.shutdown_grace_secs"),
    "--log-level": _key("observability.log_level"),
    "--log-json": _key("observability.log_format", note="json"),
    "--log-dir": _none("the log goes to standard error"),
    "--prometheus-port": _key("admin.port", note=_METRICS),
    "--prometheus-host": _key("admin.host", note=_METRICS),
    "--prometheus-duration-buckets": _none("buckets are fixed"),
    "--request-id-headers": _none("x-request-id is read"),
    "--cors-allowed-origins": _key("cors.allowed_origins"),
    "--pd-disaggregation": _DISAGGREGATION,
    "--epd-disaggregation": _DISAGGREGATION,
    "--mini-lb": _DISAGGREGATION,
    "--prefill": _DISAGGREGATION,
    "--decode": _DISAGGREGATION,
    "--encode": _DISAGGREGATION,
    "--prefill-policy": _DISAGGREGATION,
    "--decode-policy": _DISAGGREGATION,
    "--encode-policy": _DISAGGREGATION,
    "--service-discovery": _DISCOVERY,
    "--service-discovery-port": _DISCOVERY,
    "--service-discovery-namespace": _DISCOVERY,
    "--selector": _DISCOVERY,
    "--prefill-selector": _DISCOVERY,
    "--decode-selector": _DISCOVERY,
    "--encode-selector": _DISCOVERY,
    "--router-selector": _DISCOVERY,
    "--load-monitor-interval": _key("load_reports.interval_secs"),
    "--reasoning-parser": _PARSER,
    "--tool-call-parser": _PARSER,
    "--mcp-config-path": _none(),
    "--backend": _none("workers are SGLang's, over HTTP"),
    "--history-backend": _none(),
    "--enable-trace": _none("tracing is not supported"),
    "--otlp-traces-endpoint": _none("tracing is not supported"),
    "--tls-cert-path": _PROXY,
    "--tls-key-path": _PROXY,
    "--client-cert-path": _PROXY,
    "--client-key-path": _PROXY,
    "--ca-cert-paths": _PROXY,
    "--tenant-api-key": _PROXY,
    "--control-plane-api-keys": _PROXY,
    "--control-plane-audit-enabled": _PROXY,
    "--jwt-issuer": _PROXY,
    "--jwt-audience": _PROXY,
    "--jwt-jwks-uri": _PROXY,
    "--jwt-role-claim": _PROXY,
    "--jwt-role-mapping": _PROXY,
    "--max-idle-secs": _none("policy manual: nearest is models[].kv_cost.session_bonus_ms"),
    "--assignment-mode": _none("policy manual: nearest is models[].kv_cost.session_bonus_ms"),
    "--routing-key-override": _key("models[].kv_cost.session_bonus_ms", note="a preference, no rule"),
    "--prefix-token-count": _none("policy prefix_hash: use cache_aware_zmq"),
    "--prefix-hash-load-factor": _none("policy prefix_hash: use cache_aware_zmq"),
    "--health-check-port": _none("/healthz and /readyz are served on server.port"),
    "--remove-unhealthy-workers": _none("an unhealthy worker gets no requests until it recovers"),
    "--enable-mesh": _none("several routers share no state: each follows every worker"),
    "--enable-wasm": _none(),
}


def explain_flags(arguments: Sequence[str]) -> str | None:
    """What to say where the router's own arguments, those before a command, hold flags of `sglang_router`; else None.

    A flag may stand as `--flag=value`, and with the `router-` in front that its Python launcher takes.
    """
    given: dict[str, Counterpart] = {}
    for argument in arguments:
        if argument in COMMANDS:
            break
        flag = argument.partition("=")[0]
        found = FLAGS.get(flag) or FLAGS.get(flag.replace("--router-", "--", 1))
        if found is not None:
            given[flag] = found
    if not given:
        return None
    width = max(map(len, given))
    rows = [f"  {flag:<{width}}  {_said(found)}" for flag, found in given.items()]
    return "\n".join(
        [
            "flags of sglang_router: this router reads a file, sgl-router --config FILE. In it:",
            *rows,
            "config.example.yaml shows every key; docs/migrating.md says how each of them differs",
        ]
    )


def _said(found: Counterpart) -> str:
    keys = " and ".join(found.keys)
    return f"{keys} ({found.note})" if keys and found.note else keys or found.note
