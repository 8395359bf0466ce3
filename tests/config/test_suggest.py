"""What a mistyped key or value may have meant."""

from __future__ import annotations

import pytest
from msgspec import inspect

from sgl_router.config import Config
from sgl_router.config.suggest import keys_by_name, schema_paths, suggest_choice, suggest_key

ELSEWHERE = keys_by_name(inspect.type_info(Config))
SERVER = ["host", "port", "max_body_bytes"]


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("hots", "did you mean 'host'?"),
        ("PORT", "did you mean 'port'?"),
        ("max-body-bytes", "did you mean 'max_body_bytes'?"),
        ("maxBodyBytes", "did you mean 'max_body_bytes'?"),
        ("log_level", "it belongs at observability.log_level"),
        ("coolDownSecs", "it belongs at models[].circuit_breaker.cool_down_secs"),
        ("urls", "it belongs at discovery.static_urls.urls"),
        ("zzz", "valid keys here: host, port, max_body_bytes"),
        ("", "valid keys here: host, port, max_body_bytes"),
        (7, "valid keys here: host, port, max_body_bytes"),
    ],
)
def test_unknown_keys(key: object, hint: str) -> None:
    assert suggest_key(key, SERVER, ELSEWHERE) == hint


def test_choices() -> None:
    assert suggest_choice("roundRobin", ["random", "round_robin"]) == "did you mean 'round_robin'?"
    assert suggest_choice("least", ["random", "round_robin"]) == ""
    assert suggest_choice(3, ["random"]) == ""


def test_every_key_of_the_schema_has_a_path() -> None:
    paths = list(schema_paths(inspect.type_info(Config)))
    assert len(paths) == len(set(paths))
    assert {"server", "server.port", "models[].cache_aware.cache_threshold", "discovery.k8s.port"} <= set(paths)
