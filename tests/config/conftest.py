"""A valid configuration to change, and the problems found in what came of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sgl_router.config import ConfigError, parse_config
from sgl_router.config.schema import K8S_UNAVAILABLE

URL = "http://127.0.0.1:30001"


@pytest.fixture
def minimal() -> Callable[..., dict[str, Any]]:
    """The least that is valid, with whole sections replaced."""

    def build(changes: dict[Any, Any] | None = None, **sections: Any) -> dict[str, Any]:
        models = [{"id": "tiny", "tokenizer_path": "org/tiny"}]
        valid = {"models": models, "discovery": {"static_urls": {"urls": [URL]}}}
        return valid | (changes or {}) | sections

    return build


@pytest.fixture
def problems() -> Callable[..., list[str]]:
    """The lines of the ConfigError that data raises, but for the one that stands first for every `backend: k8s`."""

    def find(raw: Any, **kwargs: Any) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            parse_config(raw, **kwargs)
        lines = str(caught.value).splitlines()
        assert lines == [str(error) for error in caught.value.errors]
        return [line for line in lines if line != f"discovery.backend: {K8S_UNAVAILABLE}"]

    return find
