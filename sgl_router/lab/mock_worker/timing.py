"""How long the steps of a simulated engine take."""

from __future__ import annotations

from dataclasses import dataclass

from sgl_router.lab.mock_worker.config import MockWorkerConfig, Role


@dataclass(frozen=True)
class TimingModel:
    """Linear costs: prefill by tokens computed, decode by the number of running requests."""

    prefill_tokens_per_sec: float
    prefill_overhead_ms: float
    decode_ms_per_token: float
    decode_ms_per_running: float
    speed: float = 1.0
    receives_prefill: bool = False

    @classmethod
    def of(cls, config: MockWorkerConfig) -> TimingModel:
        """The timing of a configured worker; a decode worker receives its prompts' pages ready-made."""
        return cls(
            prefill_tokens_per_sec=config.prefill_tokens_per_sec,
            prefill_overhead_ms=config.prefill_overhead_ms,
            decode_ms_per_token=config.decode_ms_per_token,
            decode_ms_per_running=config.decode_ms_per_running,
            speed=config.speed,
            receives_prefill=config.role is Role.DECODE,
        )

    def prefill_secs(self, tokens: int) -> float:
        """Duration of one prefill step computing `tokens` tokens."""
        if self.receives_prefill:
            return 0.0
        return (self.prefill_overhead_ms / 1e3 + tokens / self.prefill_tokens_per_sec) / self.speed

    def decode_secs(self, running: int) -> float:
        """Duration of one decode step giving each of `running` requests a token."""
        return (self.decode_ms_per_token + self.decode_ms_per_running * running) / 1e3 / self.speed
