"""Which workers should exist."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sgl_router.config.schema import K8S_UNAVAILABLE
from sgl_router.discovery.base import (
    Added,
    Discovery,
    DiscoveryEvent,
    DiscoveryUnavailable,
    ModeChanged,
    Removed,
    WorkerMode,
)
from sgl_router.discovery.static_urls import StaticUrls

if TYPE_CHECKING:
    from sgl_router.config.schema import DiscoveryConfig

__all__ = [
    "Added",
    "Discovery",
    "DiscoveryEvent",
    "DiscoveryUnavailable",
    "ModeChanged",
    "Removed",
    "StaticUrls",
    "WorkerMode",
    "make_discovery",
]


def make_discovery(config: DiscoveryConfig) -> Discovery:
    """The configured backend; DiscoveryUnavailable where this build has none."""
    if config.backend == "k8s":
        raise DiscoveryUnavailable(f"discovery.backend: {K8S_UNAVAILABLE}")
    return StaticUrls(config.static_urls.urls if config.static_urls is not None else ())
