"""Settings no engine could run with are refused; the package is cheap to import."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

import sgl_router.lab.mock_worker as mock
from sgl_router.lab.mock_worker.config import Dialect, MockWorkerConfig, Role
from sgl_router.lab.mock_worker.profile import EngineProfile


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"page_size": 0}, "page_size"),
        ({"dp_size": 0}, "dp_size"),
        ({"speed": 0}, "speed"),
        ({"decode_ms_per_token": -1}, "decode_ms_per_token"),
        ({"cache_tokens": 16}, "cache_tokens"),
        ({"host_cache_tokens": -1}, "host_cache_tokens"),
        ({"queue_limit": -1}, "queue_limit"),
        ({"decode_log_interval": 0}, "decode_log_interval"),
        ({"kv_port": 65535, "dp_size": 2}, "kv_port"),
        ({"load_port": 65535, "dp_size": 2}, "load_port"),
    ],
)
def test_impossible_settings_are_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        MockWorkerConfig(**settings)


def test_decode_workers_publish_nothing() -> None:
    assert MockWorkerConfig(role=Role.PREFILL).publishes_events
    assert not MockWorkerConfig(role=Role.DECODE).publishes_events
    assert not MockWorkerConfig(radix_cache=False).publishes_events


def test_a_dialect_brings_its_version_and_abilities() -> None:
    old = EngineProfile.of(MockWorkerConfig(dialect=Dialect.LEGACY))
    new = EngineProfile.of(MockWorkerConfig())
    assert (old.version, new.version) == ("0.5.8", "0.5.23")
    assert new.describes_kv_events
    assert not old.describes_kv_events
    assert (old.has_get_load, new.has_get_load) == (True, False)
    assert EngineProfile.of(MockWorkerConfig(dialect=Dialect.LEGACY, version="0.5.6")).removes_on_split
    with pytest.raises(ValueError, match="version"):
        EngineProfile.of(MockWorkerConfig(version="latest"))


def test_every_public_name_is_there() -> None:
    for name in mock.__all__:
        assert getattr(mock, name) is not None
    with pytest.raises(AttributeError):
        _ = mock.nothing_like_this


def test_the_command_line_needs_nothing_heavy() -> None:
    program = (
        "import sys, argparse, sgl_router.lab.mock_worker.cli as cli;"
        "cli.add_arguments(argparse.ArgumentParser());"
        "print([n for n in ('transformers','tokenizers','aiohttp','zmq','numpy') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
