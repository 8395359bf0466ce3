"""Hosts and ports as workers advertise them, turned into what can be dialled."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

__all__ = ["bracketed", "is_dialable", "is_loopback", "is_wildcard", "split_tcp", "url_host"]

_WILDCARDS = frozenset({"", "*", "0.0.0.0", "::"})
_HOST = re.compile(r"[A-Za-z0-9_.:%-]{1,255}\Z")


def url_host(url: str) -> str:
    """The bare host of a normalised worker URL, IPv6 without its brackets."""
    return urlsplit(url).hostname or ""


def bracketed(host: str) -> str:
    """The host as it stands in front of a port."""
    return f"[{host}]" if ":" in host else host


def is_wildcard(host: str) -> bool:
    """Whether a bind address means every interface, so that only the worker's URL tells where it is."""
    return host.strip("[]") in _WILDCARDS


def is_dialable(host: str) -> bool:
    """Whether the text can stand as a host in an endpoint; it need not resolve."""
    return _HOST.match(host.strip("[]")) is not None


def is_loopback(host: str) -> bool:
    bare = host.strip("[]").lower()
    if bare == "localhost":
        return True
    try:
        return ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return False


def split_tcp(endpoint: object) -> tuple[str, int] | None:
    """Bare host and port of a ZMQ TCP endpoint; None where it is anything else."""
    if not isinstance(endpoint, str) or not endpoint.startswith("tcp://"):
        return None
    host, colon, port = endpoint[len("tcp://") :].rpartition(":")
    if not colon or not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        return None
    return (host.strip("[]"), int(port)) if is_wildcard(host) or is_dialable(host) else None
