"""What one mock worker is told to be."""

from __future__ import annotations

import math
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec

EMBEDDED_TOKENIZER_PATH = str(Path(__file__).with_name("tokenizer"))


class Role(str, Enum):
    """Which half of a prefill/decode pair the worker plays, if any."""

    PLAIN = "plain"
    PREFILL = "prefill"
    DECODE = "decode"


class Dialect(str, Enum):
    """KV-event encodings seen on real wires, named by what changed; versions in `profile.py`."""

    LEGACY = "legacy"
    MEDIUM = "medium"
    ARRAY17 = "array17"
    SALT_ARRAY = "salt_array"
    MAP = "map"
    MAP_LORA = "map_lora"
    VLLM = "vllm"
    VLLM_HYBRID = "vllm_hybrid"  # a model with full attention, a sliding window and a recurrent state: three groups


class MockWorkerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every setting of a mock worker. Port 0 means: take a free one and keep it across restarts.

    With several dp ranks, rank r publishes on `kv_port + r`, replays on `replay_port + r`, and tells its load on
    `load_port + r` (where `publish_load` is on, the version can, and KV events are configured).
    `speed` divides every simulated duration; `math.inf` removes them. `keep_alive_secs` is how long an
    idle client connection is kept, `buffered_abort_delay_secs` how late a lost client of a buffered request
    is noticed (the engine polls for it every 4 seconds).
    """

    host: str = "127.0.0.1"
    port: int = 0
    model_id: str = "mock-model"
    model_path: str | None = None
    tokenizer_path: str = EMBEDDED_TOKENIZER_PATH
    api_key: str | None = None
    role: Role = Role.PLAIN
    bootstrap_port: int = 0

    dialect: Dialect = Dialect.MAP_LORA
    version: str | None = None
    kv_events: bool = True
    kv_port: int = 0
    replay: bool = True
    replay_port: int = 0
    replay_send_high_water_mark: int = 1000
    topic: str = "kv-events"
    buffer_steps: int = 10_000
    endpoint_host: str = "*"
    publish_load: bool = False
    load_port: int = 0

    page_size: int = 16
    dp_size: int = 1
    cache_tokens: int = 131_072
    host_cache_tokens: int = 0
    radix_cache: bool = True
    bigram: bool = False

    context_length: int = 32_768
    max_running: int = 64
    queue_limit: int | None = None
    chunked_prefill_size: int = 8192
    decode_log_interval: int = 1
    prefill_tokens_per_sec: float = 20_000.0
    prefill_overhead_ms: float = 2.0
    decode_ms_per_token: float = 8.0
    decode_ms_per_running: float = 0.1
    speed: float = 1.0
    answer_tokens: int = 32

    enable_cache_report: bool = True
    keep_alive_secs: float = 5.0
    buffered_abort_delay_secs: float = 0.0

    def __post_init__(self) -> None:
        """Reject what no engine could be started with."""
        for name in ("page_size", "dp_size", "max_running", "chunked_prefill_size", "answer_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("decode_log_interval", "context_length", "buffer_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("prefill_tokens_per_sec", "speed"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("prefill_overhead_ms", "decode_ms_per_token", "decode_ms_per_running"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        if self.cache_tokens < 2 * self.page_size:
            raise ValueError(f"cache_tokens must hold at least two pages, not {self.cache_tokens} tokens")
        if self.host_cache_tokens < 0:
            raise ValueError(f"host_cache_tokens must not be negative, not {self.host_cache_tokens}")
        if self.queue_limit is not None and self.queue_limit < 0:
            raise ValueError(f"queue_limit must not be negative, not {self.queue_limit}")
        for name in ("port", "kv_port", "replay_port", "load_port", "bootstrap_port"):
            if not 0 <= getattr(self, name) <= 65535 - self.dp_size + 1:
                raise ValueError(f"{name} must leave room for {self.dp_size} port(s), not {getattr(self, name)}")

    @classmethod
    def instant(cls, **settings: Any) -> MockWorkerConfig:
        """A worker that takes no simulated time, for tests."""
        return cls(**{"speed": math.inf, **settings})

    @property
    def served_model_path(self) -> str:
        """What the worker calls its model path."""
        return self.model_path or f"mock/{self.model_id}"

    @property
    def caches_prefixes(self) -> bool:
        """Whether finished pages are kept for later requests; a decode worker runs without a radix cache."""
        return self.radix_cache and self.role is not Role.DECODE

    @property
    def publishes_events(self) -> bool:
        """Without a radix cache the event ports are there, and silent."""
        return self.kv_events and self.caches_prefixes
