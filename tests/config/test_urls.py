"""Worker URLs: one spelling for one origin, and a reason for every refusal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_router.config import InvalidUrl, normalise_url
from sgl_router.config.errors import Rejected
from sgl_router.config.urls import parse_listen_host


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("http://host:30000", "http://host:30000"),
        ("http://host:30000/", "http://host:30000"),
        ("HTTP://Host", "http://host:80"),
        ("https://host", "https://host:443"),
        ("http://host:080", "http://host:80"),
        ("http://10.0.0.3:1", "http://10.0.0.3:1"),
        ("http://[::1]:30000", "http://[::1]:30000"),
        ("http://[2001:DB8:0:0::1]", "http://[2001:db8::1]:80"),
        ("http://worker_1.fleet-a.svc.cluster.local:30000", "http://worker_1.fleet-a.svc.cluster.local:30000"),
    ],
)
def test_one_spelling(url: str, normal: str) -> None:
    assert normalise_url(url) == normal
    assert normalise_url(normal) == normal


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "the scheme is missing"),
        ("host:30000", "the scheme is missing: http://host:30000 ?"),
        ("ftp://host", "the scheme must be http or https, not ftp"),
        ("http://", "the host is missing"),
        ("http://:30000", "the host is missing"),
        ("http://host:", "the port after ':' is missing"),
        ("http://host:0", "the port must be from 1 to 65535, not '0'"),
        ("http://host:65536", "the port must be from 1 to 65535, not '65536'"),
        ("http://host:+80", "the port must be from 1 to 65535, not '+80'"),
        ("http://host/v1", "only scheme, host and port: the path must go"),
        ("http://host?x=1", "only scheme, host and port: the query must go"),
        ("http://host/#x", "only scheme, host and port: the fragment must go"),
        ("http://me:pw@host", "it holds a user name or password; set discovery.worker_api_key_env instead"),
        ("http://ho st", "it holds white space or control characters"),
        ("http://host\n", "it holds white space or control characters"),
        ("http://bücher", "write an international host name in its xn-- form"),
        ("http://10.0.0.300", "10.0.0.300 is not an IPv4 address"),
        ("http://[::zz]", "[::zz] is not an IPv6 address"),
        ("http://[fe80::1%eth0]", "an IPv6 zone (%...) is not supported"),
        ("http://::1", "an IPv6 address goes in brackets: http://[::1]:30000"),
        ("http://-host", "'-host' is not a host name"),
        ("http://a..b", "'a..b' is not a host name"),
    ],
)
def test_refused_with_the_reason(url: str, reason: str) -> None:
    with pytest.raises(InvalidUrl) as caught:
        normalise_url(url)
    assert caught.value.hint == reason
    assert str(caught.value) == f"expected a worker URL like http://host:30000 ({reason})"


@pytest.mark.parametrize(
    "url",
    [
        "http://me:hunter2@host:30000",
        "http://hunter2@host",
        "me:hunter2@host:30000",
        "ftp://me:hunter2@host",
        "http://me:hunter2@ho st",
        "http://host?key=hunter2",
        "http://me:hunt/er2@hunter2@host",
    ],
)
def test_credentials_are_never_repeated(url: str) -> None:
    with pytest.raises(InvalidUrl) as caught:
        normalise_url(url)
    assert caught.value.shown is not None
    assert "hunt" not in str(caught.value) + caught.value.shown


@given(st.text() | st.text(alphabet="htps:/[]@?#.%1a ", max_size=30))
def test_any_text_is_normalised_or_refused(text: str) -> None:
    try:
        normal = normalise_url(text)
    except InvalidUrl:
        return
    assert normalise_url(normal) == normal


@pytest.mark.parametrize(
    ("host", "normal"), [("0.0.0.0", "0.0.0.0"), ("::", "::"), ("0:0::1", "::1"), ("LocalHost", "localhost")]
)
def test_listen_hosts(host: str, normal: str) -> None:
    assert parse_listen_host(host) == normal


@pytest.mark.parametrize(
    ("host", "hint"),
    [
        ("http://0.0.0.0", "no scheme and no path"),
        ("[::1]", "without brackets"),
        ("0.0.0.0:30000", "the port goes into server.port"),
        ("300.0.0.1", "300.0.0.1 is not an IPv4 address"),
        ("a b", "'a b' is not a host name"),
    ],
)
def test_listen_hosts_refused(host: str, hint: str) -> None:
    with pytest.raises(Rejected) as caught:
        parse_listen_host(host)
    assert caught.value.hint == hint
