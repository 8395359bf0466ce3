"""The configuration: its schema, its defaults, and every message about a mistake in it."""

from sgl_router.config.errors import ConfigError, FieldError
from sgl_router.config.load import LoadedConfig, load_config, parse_config
from sgl_router.config.schema import (
    ActiveLoadConfig,
    CacheAwareConfig,
    CircuitBreakerConfig,
    Config,
    DiscoveryConfig,
    HealthConfig,
    K8sConfig,
    KvCostConfig,
    KvEventsConfig,
    LoadReportsConfig,
    ModelConfig,
    ObservabilityConfig,
    PolicyName,
    ProxyConfig,
    QueueConfig,
    ServerConfig,
    SnapshotConfig,
    StaticUrlsConfig,
)
from sgl_router.config.urls import InvalidUrl, normalise_url

__all__ = [
    "ActiveLoadConfig",
    "CacheAwareConfig",
    "CircuitBreakerConfig",
    "Config",
    "ConfigError",
    "DiscoveryConfig",
    "FieldError",
    "HealthConfig",
    "InvalidUrl",
    "K8sConfig",
    "KvCostConfig",
    "KvEventsConfig",
    "LoadReportsConfig",
    "LoadedConfig",
    "ModelConfig",
    "ObservabilityConfig",
    "PolicyName",
    "ProxyConfig",
    "QueueConfig",
    "ServerConfig",
    "SnapshotConfig",
    "StaticUrlsConfig",
    "load_config",
    "normalise_url",
    "parse_config",
]
