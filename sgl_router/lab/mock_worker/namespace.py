"""What keeps two requests with equal tokens from sharing cached pages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Namespace:
    """A tenant's corner of the cache. `lora_id` names one load of an adapter, not the adapter."""

    extra_key: str | None = None
    cache_salt: str | None = None
    lora_name: str | None = None
    lora_id: str | None = None

    @property
    def engine_extra_key(self) -> str | None:
        """The extra key as the engine composes it: the request's, then the adapter load's id."""
        if self.lora_id is None:
            return self.extra_key
        return (self.extra_key or "") + self.lora_id


DEFAULT_NAMESPACE = Namespace()
