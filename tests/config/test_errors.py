"""Messages: short, on one line, and silent about secrets."""

from __future__ import annotations

from datetime import date

import pytest

from sgl_router.config import ConfigError, FieldError
from sgl_router.config.errors import child, mismatch, missing, show


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "null"),
        (True, "true"),
        (3, "3"),
        (1.5, "1.5"),
        ("3", "'3'"),
        ("a\nb", r"'a\nb'"),
        ({}, "an empty mapping"),
        ({"a": 1}, "a mapping"),
        ([], "an empty list"),
        ([1], "a list"),
        (date(2020, 1, 2), "a date ('2020-01-02')"),
    ],
)
def test_values_as_shown(value: object, shown: str) -> None:
    assert show(value) == shown


def test_numbers_python_does_not_print_are_named() -> None:
    assert show(1 << 100_000) == "a value too long to show"


def test_long_values_are_clipped() -> None:
    shown = show("x" * 5000)
    assert len(shown) <= 80
    assert shown.endswith("...'")


@pytest.mark.parametrize("path", ["discovery.api_key", "worker_token", "models[0].db-password", "client.Secret"])
def test_secrets_are_not_shown(path: str) -> None:
    assert show("hunter2", path) == "a value not shown here"


def test_tokenizers_and_counts_of_tokens_are_no_secret() -> None:
    assert show(-1, "models[0].kv_cost.prefill_tokens_per_sec") == "-1"
    assert show(-1, "models[0].kv_cost.decode_ms_per_1k_tokens") == "-1"
    assert show("org/name", "models[0].tokenizer_path") == "'org/name'"


def test_paths() -> None:
    assert child("", "server") == "server"
    assert child("server", "port") == "server.port"
    assert child("models", 0) == "models[0]"
    assert child("selector", "app.kubernetes.io/name") == "selector['app.kubernetes.io/name']"


def test_a_config_error_is_one_line_for_each_problem() -> None:
    errors = [
        mismatch("server.port", "3", "a port", "no quotes"),
        missing("models", "a list of at least one model"),
        FieldError(path="", message="the file is empty"),
    ]
    error = ConfigError(errors)
    assert error.errors == errors
    assert str(error).splitlines() == [
        "server.port: expected a port, got '3' (no quotes)",
        "models: required but missing: expected a list of at least one model",
        "the file is empty",
    ]
    assert (errors[0].value, errors[0].expected) == ("'3'", "a port")
