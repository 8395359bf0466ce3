"""sgl-router: a KV-event-driven, cache-aware router for SGLang workers."""

__version__ = "0.1.0"
__all__ = ["__version__"]
