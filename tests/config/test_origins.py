"""Origins are spelled as browsers spell them, and what can match no browser's is refused with a reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from sgl_router.config import parse_config

Minimal = Callable[..., dict[str, Any]]
Problems = Callable[..., list[str]]


@pytest.mark.parametrize(
    ("given", "origin"),
    [
        ("*", "*"),
        ("https://chat.example.com", "https://chat.example.com"),
        ("HTTPS://Chat.Example.com:443/", "https://chat.example.com"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://a:80", "http://a"),
        ("https://a:80", "https://a:80"),
        ("http://[0:0::1]:8080", "http://[::1]:8080"),
        ("chrome-extension://abcdefghijklmnop", "chrome-extension://abcdefghijklmnop"),
        ("tauri://localhost", "tauri://localhost"),
    ],
)
def test_an_origin_is_kept_as_a_browser_writes_it(minimal: Minimal, given: str, origin: str) -> None:
    config = parse_config(minimal(cors={"allowed_origins": [given]})).config
    assert config.cors.allowed_origins == [origin]


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("chat.example.com", "the scheme is missing: https://chat.example.com ?"),
        ("", "no scheme"),
        ("null", "every local file and sandboxed page is null"),
        ("https://*.example.com", "origins are compared whole"),
        ("https://a/path", "only scheme, host and port"),
        ("https://a?x", "only scheme, host and port"),
        ("https://bücher.example", "xn--"),
        ("https://a b", "white space"),
        ("https://", "the host is missing"),
        ("https://a:0", "the port must be from 1 to 65535"),
        ("https://::1", "in brackets"),
    ],
)
def test_what_no_browser_sends_is_refused(minimal: Minimal, problems: Problems, given: str, hint: str) -> None:
    (line,) = problems(minimal(cors={"allowed_origins": ["https://fine.example", given]}))
    assert line.startswith("cors.allowed_origins[1]: expected an origin like https://chat.example.com, or '*' for")
    assert hint in line and f"got {given!r}" in line


def test_a_user_name_is_not_shown(minimal: Minimal, problems: Problems) -> None:
    (line,) = problems(minimal(cors={"allowed_origins": ["https://me:secret@a"]}))
    assert "an origin has no user name" in line and "secret" not in line


def test_a_list_and_the_star_exclude_each_other_and_nothing_is_named_twice(
    minimal: Minimal, problems: Problems
) -> None:
    (line,) = problems(minimal(cors={"allowed_origins": ["https://a", "*"]}))
    assert line == (
        "cors.allowed_origins[1]: expected '*' alone, or a list of origins, got '*' (it allows what the others name)"
    )
    (line,) = problems(minimal(cors={"allowed_origins": ["https://a", "https://A:443/"]}))
    assert line.startswith("cors.allowed_origins[1]: expected distinct origins")
    (line,) = problems(minimal(cors={"allowed_origins": "https://a"}))
    assert line.startswith("cors.allowed_origins: expected a list")


def test_none_is_the_default(minimal: Minimal) -> None:
    assert parse_config(minimal()).config.cors.allowed_origins == []
