"""Worker URLs: one spelling for each origin, so that equal workers have equal strings."""

from __future__ import annotations

import ipaddress
import re

from sgl_router.config.errors import Rejected

_DEFAULT_PORTS = {"http": 80, "https": 443}
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<rest>.*)\Z")
_AUTHORITY = re.compile(r"(?P<host>\[[^\]]*\]|[^:]*)(?::(?P<port>.*))?\Z")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\Z")


class InvalidUrl(Rejected):
    """Not the URL of a worker; the message says why and never repeats credentials."""

    def __init__(self, hint: str, *, shown: str | None = None) -> None:
        super().__init__("a worker URL like http://host:30000", hint, shown=shown)


def normalise_url(url: str) -> str:
    """The origin as `scheme://host:port`: lower case, port explicit, IPv6 compressed, no trailing slash."""
    try:
        return _origin(url)
    except InvalidUrl as error:
        raise InvalidUrl(error.hint, shown=_masked(url)) from None


def parse_listen_host(host: str) -> str:
    """An address or name for `server.host`: an IPv6 address without brackets; raises Rejected."""
    expected = "an address or host name to listen on, like 127.0.0.1, 0.0.0.0, :: or localhost"
    if "://" in host or "/" in host:
        raise Rejected(expected, "no scheme and no path")
    if ":" in host:
        try:
            return ipaddress.IPv6Address(host).compressed
        except ValueError:
            hint = "without brackets" if host.startswith("[") else "the port goes into server.port"
            raise Rejected(expected, hint) from None
    try:
        return _host(host)
    except InvalidUrl as error:
        raise Rejected(expected, error.hint) from None


def _origin(url: str) -> str:
    if any(char.isspace() or not char.isprintable() for char in url):
        raise InvalidUrl("it holds white space or control characters")
    if not url.isascii():
        raise InvalidUrl("write an international host name in its xn-- form")
    found = _URL.match(url)
    if found is None:
        raise InvalidUrl("the scheme is missing" + (f": http://{url} ?" if re.match(r"[\w.-]+(:\d+)?\Z", url) else ""))
    scheme = found["scheme"].lower()
    if scheme not in _DEFAULT_PORTS:
        raise InvalidUrl(f"the scheme must be http or https, not {scheme}")
    if "@" in found["authority"]:
        raise InvalidUrl("it holds a user name or password; set discovery.worker_api_key_env instead")
    if found["rest"] not in ("", "/"):
        raise InvalidUrl(_beyond_the_origin(found["rest"]))
    host, port = parse_authority(found["authority"])
    return f"{scheme}://{host}:{_DEFAULT_PORTS[scheme] if port is None else port}"


def parse_authority(text: str) -> tuple[str, int | None]:
    """Host in lower case, IPv6 compressed and in brackets, and port, None where none is named; raises InvalidUrl."""
    authority = _AUTHORITY.match(text)
    if authority is None or (authority["port"] or "").count(":"):
        raise InvalidUrl("an IPv6 address goes in brackets: http://[::1]:30000")
    return _host(authority["host"]), _port(authority["port"])


def _host(host: str) -> str:
    if not host:
        raise InvalidUrl("the host is missing")
    if host.startswith("["):
        try:
            address = ipaddress.IPv6Address(host.strip("[]"))
        except ValueError:
            raise InvalidUrl(f"{host} is not an IPv6 address") from None
        if address.scope_id is not None:
            raise InvalidUrl("an IPv6 zone (%...) is not supported")
        return f"[{address.compressed}]"
    host = host.lower()
    if re.fullmatch(r"[0-9.]+", host):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise InvalidUrl(f"{host} is not an IPv4 address") from None
    name = host.removesuffix(".")
    if len(name) > 253 or not all(_LABEL.match(label) for label in name.split(".")):
        raise InvalidUrl(f"{host!r} is not a host name")
    return host


def _port(text: str | None) -> int | None:
    if text is None:
        return None
    if not text:
        raise InvalidUrl("the port after ':' is missing")
    if not text.isdigit() or len(text) > 5 or not 1 <= int(text) <= 65535:
        raise InvalidUrl(f"the port must be from 1 to 65535, not {text[:20]!r}")
    return int(text)


def _beyond_the_origin(rest: str) -> str:
    part = "query" if rest.startswith(("?", "/?")) else "fragment" if rest.startswith(("#", "/#")) else "path"
    return f"only scheme, host and port: the {part} must go"


def _masked(url: str) -> str | None:
    """The URL without its credentials and query; None when it has neither and may be shown as it is."""
    if "@" not in url and "?" not in url:
        return None
    head, _, tail = url.partition("://")
    base = (tail or head).partition("?")[0].rpartition("@")[2][:60]
    return repr(
        f"{head}://***@{base}" if tail and "@" in url else f"***@{base}" if "@" in url else f"{head}://{base}?***"
    )
