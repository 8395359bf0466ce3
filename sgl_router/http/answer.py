"""A JSON document as a response."""

from __future__ import annotations

from typing import Any

import msgspec

from sgl_router.http import ResponseWriter

__all__ = ["send_json"]

_JSON = [(b"content-type", b"application/json")]


async def send_json(writer: ResponseWriter, document: Any, status: int = 200) -> None:
    """Raises ClientGone."""
    await writer.send(status, _JSON, msgspec.json.encode(document))
