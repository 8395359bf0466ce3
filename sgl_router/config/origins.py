"""Origins as browsers send them, for `cors.allowed_origins`."""

from __future__ import annotations

import re

from sgl_router.config.errors import Rejected
from sgl_router.config.urls import InvalidUrl, parse_authority

ANY = "*"
_EXPECTED = "an origin like https://chat.example.com, or '*' for every one"
_ORIGIN = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<rest>.*)\Z")
_DEFAULT_PORTS = {"http": 80, "https": 443}


def parse_origin(text: str) -> str:
    """The origin as a browser writes it: lower case, no default port, no slash at the end. Raises Rejected."""
    if text == ANY:
        return text
    if text == "null":
        raise Rejected(_EXPECTED, "every local file and sandboxed page is null: '*' says the same")
    if any(char.isspace() or not char.isprintable() for char in text):
        raise Rejected(_EXPECTED, "it holds white space or control characters")
    if not text.isascii():
        raise Rejected(_EXPECTED, "write an international host name in its xn-- form")
    found = _ORIGIN.match(text)
    if found is None:
        hint = f"the scheme is missing: https://{text} ?" if re.match(r"[\w.-]+(:\d+)?\Z", text) else "no scheme"
        raise Rejected(_EXPECTED, hint)
    if ANY in text:
        raise Rejected(_EXPECTED, "origins are compared whole: name each, or '*' alone for every one")
    if "@" in found["authority"]:
        raise Rejected(_EXPECTED, "an origin has no user name", shown="a value not shown here")
    if found["rest"] not in ("", "/"):
        raise Rejected(_EXPECTED, "only scheme, host and port")
    scheme = found["scheme"].lower()
    try:
        host, port = parse_authority(found["authority"])
    except InvalidUrl as error:
        raise Rejected(_EXPECTED, error.hint) from None
    return f"{scheme}://{host}" + ("" if port in (None, _DEFAULT_PORTS.get(scheme)) else f":{port}")
