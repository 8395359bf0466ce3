"""What the engine version behind a dialect can do, from the version's own facts."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sgl_router.lab.mock_worker.config import Dialect, MockWorkerConfig

DEFAULT_VERSIONS = {
    Dialect.LEGACY: "0.5.8",
    Dialect.MEDIUM: "0.5.12",
    Dialect.ARRAY17: "0.5.17",
    Dialect.SALT_ARRAY: "0.5.19",
    Dialect.MAP: "0.5.21",
    Dialect.MAP_LORA: "0.5.23",
    Dialect.VLLM: "0.32.0",
    Dialect.VLLM_HYBRID: "0.32.0",
}


def version_number(version: str) -> tuple[int, int, int]:
    """The leading three numbers of a version string."""
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if found is None:
        raise ValueError(f"version must look like 0.5.23, not {version!r}")
    return int(found[1]), int(found[2]), int(found[3])


@dataclass(frozen=True)
class EngineProfile:
    """One engine version, as a set of yes-or-no abilities."""

    dialect: Dialect
    version: str

    @classmethod
    def of(cls, config: MockWorkerConfig) -> EngineProfile:
        """The profile of a configured worker; the version defaults to the dialect's last."""
        version = config.version or DEFAULT_VERSIONS[config.dialect]
        version_number(version)
        return cls(config.dialect, version)

    @property
    def is_vllm(self) -> bool:
        return self.dialect in (Dialect.VLLM, Dialect.VLLM_HYBRID)

    def _at_least(self, patch: int) -> bool:
        return self.is_vllm or version_number(self.version) >= (0, 5, patch)

    @property
    def clears_at_start(self) -> bool:
        """Sequence number 0 is an AllBlocksCleared (SGLang), or the first store (vLLM)."""
        return not self.is_vllm

    @property
    def removes_on_split(self) -> bool:
        """Up to 0.5.7 a node split announced its blocks as removed although they stayed cached."""
        return not self._at_least(8)

    @property
    def salts_hashes(self) -> bool:
        """The cache salt seeds the hash chain; before, it only kept tenants apart inside the engine."""
        return self._at_least(18)

    @property
    def wraps_lora_hashes(self) -> bool:
        return self._at_least(22) and not self.is_vllm

    @property
    def replay_sends_topic(self) -> bool:
        """Replay replies carry the topic between delimiter and sequence number."""
        return self._at_least(22)

    @property
    def describes_kv_events(self) -> bool:
        """/server_info has the resolved `kv_events` block, not only the raw `kv_events_config`."""
        return self._at_least(13)

    @property
    def describes_replay(self) -> bool:
        return self._at_least(22)

    @property
    def has_load_channel(self) -> bool:
        return self._at_least(19) and not self.is_vllm

    @property
    def load_channel_tells_queue(self) -> bool:
        """The record goes on after the rank: queued tokens, the limit of running requests, prefill totals."""
        return self._at_least(20)

    @property
    def has_ready(self) -> bool:
        return self._at_least(20) and not self.is_vllm

    @property
    def has_loads(self) -> bool:
        return self._at_least(8) and not self.is_vllm

    @property
    def loads_tell_queued_tokens(self) -> bool:
        """/v1/loads has the tokens of waiting requests."""
        return self._at_least(13)

    @property
    def loads_tell_prefill_totals(self) -> bool:
        """/v1/loads has what was computed since the start, and how long that took."""
        return self._at_least(23)

    @property
    def has_get_load(self) -> bool:
        return not self._at_least(21)

    @property
    def chat_takes_input_ids(self) -> bool:
        return self._at_least(13)

    @property
    def reads_rank_header(self) -> bool:
        return self._at_least(12)

    @property
    def tokenizes_messages(self) -> bool:
        return self._at_least(12)
