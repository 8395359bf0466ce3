"""/server_info and /model_info: the keys of the engine's that routers read, with the engine's values."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sgl_router.lab.mock_worker.config import MockWorkerConfig, Role
from sgl_router.lab.mock_worker.load_publisher import LOAD_TOPIC

if TYPE_CHECKING:
    from sgl_router.lab.mock_worker.worker import MockWorker


def kv_events_config(worker: MockWorker) -> dict[str, Any] | None:
    """What `--kv-events-config` would have been given."""
    config = worker.config
    if not config.kv_events:
        return None
    given: dict[str, Any] = {
        "publisher": "zmq",
        "endpoint": f"tcp://*:{worker.kv_port}",
        "topic": config.topic,
        "buffer_steps": config.buffer_steps,
    }
    if worker.replay_port is not None:
        given["replay_endpoint"] = f"tcp://*:{worker.replay_port}"
    return given


def kv_events_block(worker: MockWorker) -> dict[str, Any] | None:
    """The resolved description; decode workers are configured too, they only have nothing to publish."""
    config = worker.config
    if not config.kv_events:
        return None
    block: dict[str, Any] = {
        "publisher": "zmq",
        "endpoint_host": config.endpoint_host,
        "endpoint_port_base": worker.kv_port,
        "topic": config.topic,
        "block_size": config.page_size,
        "dp_size": config.dp_size,
    }
    if worker.profile.describes_replay and worker.replay_port is not None:
        block["replay_endpoint_port_base"] = worker.replay_port
    if worker.load_publishers:
        block["load_endpoint_port_base"] = worker.load_port
        block["load_topic"] = LOAD_TOPIC
    return block


def server_info(worker: MockWorker) -> dict[str, Any]:
    """The /server_info body; like the engine's, it has the api key in clear text."""
    config = worker.config
    raw = kv_events_config(worker)
    info: dict[str, Any] = {
        "status": "ready" if worker.ready else "starting",
        "model_path": config.served_model_path,
        "served_model_name": config.model_id,
        "tokenizer_path": config.tokenizer_path,
        "tokenizer_mode": "auto",
        "chat_template": None,
        "host": config.host,
        "port": worker.port,
        "api_key": config.api_key,
        "admin_api_key": None,
        "page_size": config.page_size,
        "context_length": config.context_length,
        "max_total_num_tokens": config.cache_tokens,
        "max_req_input_len": min(config.context_length, config.cache_tokens) - 6,
        "max_running_requests": config.max_running,
        "max_queued_requests": config.queue_limit,
        "chunked_prefill_size": config.chunked_prefill_size,
        "decode_log_interval": config.decode_log_interval,
        "dp_size": config.dp_size,
        "tp_size": 1,
        "pp_size": 1,
        "enable_dp_attention": False,
        "load_balance_method": "follow_bootstrap_room" if config.role is Role.PREFILL else "round_robin",
        "disaggregation_mode": "null" if config.role is Role.PLAIN else config.role.value,
        "disaggregation_bootstrap_port": worker.bootstrap_port,
        "speculative_algorithm": "EAGLE" if config.bigram else None,
        "disable_radix_cache": not config.radix_cache,
        "enable_hierarchical_cache": config.host_cache_tokens > 0,
        "enable_cache_report": config.enable_cache_report,
        "enable_lora": True,
        "enable_priority_scheduling": False,
        "enable_metrics": False,
        "reasoning_parser": None,
        "tool_call_parser": None,
        "default_chat_template_kwargs": None,
        "random_seed": worker.random_seed,
        "kv_events_config": None if raw is None else json.dumps(raw),
        "startup_time": worker.startup_time,
        "internal_states": [
            {
                "dp_rank": engine.rank,
                "memory_usage": {"token_capacity": config.cache_tokens},
                "last_gen_throughput": 0.0,
                "effective_max_running_requests_per_dp": config.max_running,
            }
            for engine in worker.engines
        ],
        "version": worker.profile.version,
    }
    if worker.profile.describes_kv_events:
        info["kv_events"] = kv_events_block(worker)
    return info


def model_info(config: MockWorkerConfig) -> dict[str, Any]:
    """The /model_info body."""
    return {
        "model_path": config.served_model_path,
        "served_model_name": config.model_id,
        "tokenizer_path": config.tokenizer_path,
        "is_generation": True,
        "preferred_sampling_params": None,
        "weight_version": "default",
        "load_format": "auto",
        "reasoning_parser": None,
        "tool_call_parser": None,
        "disaggregation_mode": "null" if config.role is Role.PLAIN else config.role.value,
        "has_image_understanding": False,
        "has_audio_understanding": False,
        "model_type": "mock",
        "architectures": ["MockForCausalLM"],
    }
