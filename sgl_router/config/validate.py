"""Rules between fields, and of fields with the world: duplicates, sections that need each other, files, environment."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sgl_router.config.errors import FieldError, child, mismatch, missing
from sgl_router.config.origins import ANY
from sgl_router.config.schema import CacheAwareConfig, Config, KvCostConfig, PolicyName, ServerConfig
from sgl_router.config.walk import INVALID

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?\Z")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_HEADER_SAFE = re.compile(r"[\x21-\x7e]+\Z")


def check_rules(tree: dict[str, Any], base_dir: Path, env: Mapping[str, str]) -> list[FieldError]:
    """Problems that no single field shows. Resolves paths in `tree` in place; parts that are INVALID are skipped."""
    errors: list[FieldError] = []
    models = _list(tree.get("models"))
    ids = [model.get("id") if isinstance(model, dict) else INVALID for model in models]
    errors += _duplicates("models", ids, "model ids", "id")
    for index, model in enumerate(models):
        if isinstance(model, dict):
            errors += _model_files(model, child("models", index), base_dir)
            errors += _queue(model, child("models", index))
    if isinstance(tree.get("server"), dict):
        errors += _server(tree["server"])
    if isinstance(tree.get("admin"), dict):
        server = tree.get("server")
        errors += _admin(tree["admin"], server if isinstance(server, dict) else {})
    discovery = tree.get("discovery")
    if isinstance(discovery, dict):
        errors += _discovery(discovery, base_dir, env)
    cors = tree.get("cors")
    if isinstance(cors, dict):
        origins = _list(cors.get("allowed_origins"))
        errors += _duplicates("cors.allowed_origins", origins, "origins")
        if ANY in origins and len(origins) > 1:
            at = child("cors.allowed_origins", origins.index(ANY))
            errors.append(mismatch(at, ANY, "'*' alone, or a list of origins", "it allows what the others name"))
    events = tree.get("kv_events")
    if isinstance(events, dict) and isinstance(events.get("snapshot"), dict):
        errors += _snapshot(events["snapshot"], base_dir)
    return errors


def warnings_of(config: Config) -> list[str]:
    """What is allowed but is unlikely to be meant, one line each."""
    found: list[str] = []
    proxy, discovery = config.proxy, config.discovery
    stale = config.active_load.stale_request_timeout_secs
    if stale <= proxy.request_timeout_secs:
        found.append(
            f"active_load.stale_request_timeout_secs: {stale:g} is not greater than proxy.request_timeout_secs "
            f"({proxy.request_timeout_secs:g}): requests will be expired as stale before they time out"
        )
    if proxy.connect_timeout_secs > proxy.request_timeout_secs:
        found.append(
            f"proxy.connect_timeout_secs: {proxy.connect_timeout_secs:g} is greater than proxy.request_timeout_secs "
            f"({proxy.request_timeout_secs:g}) and cannot take effect"
        )
    for index, model in enumerate(config.models):
        path, queue = child("models", index), model.queue
        if model.policy is not PolicyName.CACHE_AWARE_ZMQ and model.cache_aware != CacheAwareConfig():
            found.append(f"{path}.cache_aware: ignored, {path}.policy is {model.policy.value}")
        if model.policy is not PolicyName.KV_COST and model.kv_cost != KvCostConfig():
            found.append(f"{path}.kv_cost: ignored, {path}.policy is {model.policy.value}")
        if queue.enabled and queue.max_wait_secs > proxy.request_timeout_secs:
            found.append(
                f"{path}.queue.max_wait_secs: {queue.max_wait_secs:g} is greater than proxy.request_timeout_secs "
                f"({proxy.request_timeout_secs:g}): requests may wait for a worker longer than one has to answer them"
            )
    reports = config.load_reports
    if reports.enabled and reports.stale_after_secs <= reports.interval_secs:
        found.append(
            f"load_reports.stale_after_secs: {reports.stale_after_secs:g} is not greater than "
            f"load_reports.interval_secs ({reports.interval_secs:g}): reports are stale before the next ones come"
        )
    unused = {"static_urls": discovery.k8s, "k8s": discovery.static_urls}[discovery.backend]
    if unused is not None:
        name = "k8s" if discovery.backend == "static_urls" else "static_urls"
        found.append(f"discovery.{name}: ignored, discovery.backend is {discovery.backend}")
    return found


def _admin(admin: dict[str, Any], server: dict[str, Any]) -> Iterator[FieldError]:
    """Operators' routes have a port of their own."""
    usual = ServerConfig()
    port, host = admin.get("port"), admin.get("host", usual.host)
    if port and port == server.get("port", usual.port) and host == server.get("host", usual.host):
        yield mismatch("admin.port", port, "another port than server.port", "without `admin` both are served there")


def _server(server: dict[str, Any]) -> Iterator[FieldError]:
    """Each process must be able to hold one body."""
    usual = ServerConfig()
    given = server.get("max_buffered_bytes")
    body, processes = server.get("max_body_bytes", usual.max_body_bytes), server.get("processes", usual.processes)
    if isinstance(given, int) and isinstance(body, int) and isinstance(processes, int) and given < body * processes:
        each = f" for each of the {processes} processes" if processes > 1 else ""
        expected = f"at least {body * processes}: one body of server.max_body_bytes{each}"
        yield mismatch("server.max_buffered_bytes", given, expected)


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _duplicates(path: str, values: list[Any], what: str, key: str = "") -> Iterator[FieldError]:
    """Each value that stands earlier in the list too, naming both positions."""
    first: dict[Any, str] = {}
    for index, value in enumerate(values):
        if value is INVALID or value is None:
            continue
        place = child(path, index) + (f".{key}" if key else "")
        if value in first:
            yield mismatch(place, value, f"distinct {what}", f"the same as {first[value]}")
        first.setdefault(value, place)


def _model_files(model: dict[str, Any], path: str, base_dir: Path) -> Iterator[FieldError]:
    tokenizer, template = model.get("tokenizer_path"), model.get("chat_template")
    if isinstance(tokenizer, str):
        found = _existing(tokenizer, base_dir, Path.exists)
        if found is not None:
            model["tokenizer_path"] = found
        elif not _HUB_ID.match(tokenizer) or tokenizer.endswith(".json"):
            expected = "an existing directory or tokenizer.json, or a hub id like org/name"
            yield mismatch(child(path, "tokenizer_path"), tokenizer, expected, _looked(tokenizer, base_dir))
    if isinstance(template, str):
        found = _existing(template, base_dir)
        if found is not None:
            model["chat_template"] = found
        else:
            where = _looked(template, base_dir)
            yield mismatch(child(path, "chat_template"), template, "an existing chat template file", where)


def _queue(model: dict[str, Any], path: str) -> Iterator[FieldError]:
    queue, policy = model.get("queue"), model.get("policy", PolicyName.CACHE_AWARE_ZMQ.value)
    if isinstance(queue, dict) and queue.get("enabled") is True and policy not in (PolicyName.KV_COST.value, INVALID):
        hint = f"{path}.policy is {policy}: only kv_cost can tell who should go first, and where to"
        yield mismatch(f"{path}.queue.enabled", True, f"false, or {path}.policy kv_cost", hint)


def _snapshot(snapshot: dict[str, Any], base_dir: Path) -> Iterator[FieldError]:
    path = "kv_events.snapshot"
    yield from _duplicates(f"{path}.peers", _list(snapshot.get("peers")), "router URLs")
    given = snapshot.get("path")
    if not isinstance(given, str):
        return
    folder = _existing(str(_expanded(given).parent), base_dir, Path.is_dir)
    name = _expanded(given).name
    if folder is None:
        where = _looked(str(_expanded(given).parent), base_dir)
        yield mismatch(f"{path}.path", given, "the path of a file in an existing folder", where)
    elif not name or Path(folder, name).is_dir():
        yield mismatch(f"{path}.path", given, "the path of a file", "it is a folder")
    else:
        snapshot["path"] = str(Path(folder, name))


def _existing(given: str, base_dir: Path, is_there: Callable[[Path], bool] = Path.is_file) -> str | None:
    """The absolute path if it exists; a relative one is looked up in the config's folder, then the working one."""
    for folder in (base_dir, Path.cwd()):
        path = folder.absolute() / _expanded(given)
        try:
            if is_there(path):
                return str(path)
        except OSError:  # not readable, or longer than a path can be: not there for us
            continue
    return None


def _expanded(given: str) -> Path:
    try:
        return Path(given).expanduser()
    except RuntimeError:  # ~name of a user there is none of
        return Path(given)


def _looked(given: str, base_dir: Path) -> str:
    if "$" in given:
        return "environment variables are not replaced"
    if _expanded(given).is_absolute():
        return "there is none"
    return f"there is none below {base_dir.absolute()} or the working directory"


def _discovery(discovery: dict[str, Any], base_dir: Path, env: Mapping[str, str]) -> Iterator[FieldError]:
    backend = discovery.get("backend", "static_urls")
    if backend is not INVALID and discovery.get(backend) is None:
        expected = {
            "static_urls": "a mapping with the key urls, since discovery.backend is static_urls",
            "k8s": "a mapping with the keys selector and port, since discovery.backend is k8s",
        }[backend]
        yield missing(f"discovery.{backend}", expected)
    static = discovery.get("static_urls")
    if isinstance(static, dict):
        yield from _duplicates("discovery.static_urls.urls", _list(static.get("urls")), "worker URLs")
    k8s = discovery.get("k8s")
    if isinstance(k8s, dict):
        yield from _k8s(k8s, base_dir)
    yield from _worker_api_key_env(discovery.get("worker_api_key_env"), env)


def _k8s(k8s: dict[str, Any], base_dir: Path) -> Iterator[FieldError]:
    path = "discovery.k8s"
    selector, prefill, decode = (k8s.get(key) for key in ("selector", "prefill_selector", "decode_selector"))
    if (prefill is None) != (decode is None):
        absent = "prefill_selector" if prefill is None else "decode_selector"
        yield missing(f"{path}.{absent}", "prefill_selector and decode_selector together, or neither")
    if selector is None and prefill is None and decode is None:
        yield missing(f"{path}.selector", "the labels of worker pods, here or in prefill_selector and decode_selector")
    if isinstance(prefill, dict) and isinstance(decode, dict):
        for name, mine, other in (("prefill", prefill, decode), ("decode", decode, prefill)):
            if mine.items() <= other.items():
                hint = "they are the same" if mine == other else "it matches every pod the other one does"
                yield mismatch(f"{path}.{name}_selector", _as_text(mine), "pods of one role only", hint)
                break
    for name in ("prefill_selector", "decode_selector"):
        role = k8s.get(name)
        if isinstance(selector, dict) and isinstance(role, dict):
            clash = [label for label in selector if role.get(label, selector[label]) != selector[label]]
            if clash:
                hint = f"selector asks for {clash[0]}={selector[clash[0]]}, so no pod can match"
                yield mismatch(f"{path}.{name}", _as_text(role), "labels that agree with discovery.k8s.selector", hint)
    kube_config = k8s.get("kube_config")
    if isinstance(kube_config, str):
        found = _existing(kube_config, base_dir)
        if found is None:
            where = _looked(kube_config, base_dir)
            yield mismatch(f"{path}.kube_config", kube_config, "an existing kubeconfig file", where)
        k8s["kube_config"] = found or INVALID


def _as_text(labels: dict[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in labels.items())


def _worker_api_key_env(name: object, env: Mapping[str, str]) -> Iterator[FieldError]:
    """The variable must hold a key. Neither its value nor a key pasted here instead of a name may reach a message."""
    if not isinstance(name, str):
        return
    path, value = "discovery.worker_api_key_env", env.get(name)
    if not _ENV_NAME.match(name):
        expected = "the name of an environment variable, not the key itself"
        yield mismatch(path, name, expected, shown="a value not shown here")
    elif value is None:
        yield mismatch(path, name, "the name of an environment variable that is set", f"{name} is not set", shown=name)
    elif not _HEADER_SAFE.match(value):
        what = "is empty" if not value else "holds spaces, a line end or other characters no HTTP header takes"
        yield mismatch(path, name, "the name of an environment variable with a key", f"{name} {what}", shown=name)
