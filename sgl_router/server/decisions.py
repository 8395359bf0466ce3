"""Why requests went where they went: the last decisions, and what would be decided now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from sgl_router.errors import BadRequest
from sgl_router.proxy import Outbound
from sgl_router.routing.views import lease_view

from .ask import make_ask
from .body import read_chat

if TYPE_CHECKING:
    from sgl_router.routing import LocalRouting

    from .inbound import Inbound
    from .services import Services

__all__ = ["MAX_DECISIONS", "decisions_view", "serve_explain"]

MAX_DECISIONS = 1_000
_DEFAULT_LIMIT = 100


def decisions_view(routing: LocalRouting, limit: str | None) -> dict[str, Any]:
    """The last decisions, newest first. Raises BadRequest."""
    count = _DEFAULT_LIMIT
    if limit is not None:
        if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit) <= MAX_DECISIONS:
            raise BadRequest(f"limit is {limit[:50]!r}, expected a number from 1 to {MAX_DECISIONS}", "limit")
        count = int(limit)
    return {"decisions": [lease_view(lease) for lease in routing.decisions.last(count)]}


async def serve_explain(services: Services, inbound: Inbound, out: Outbound) -> None:
    """Where a chat would go now, and why; nothing is sent. Raises what a chat completion would be refused with."""
    chat = await read_chat(inbound.body)
    model, adapter = services.model(chat["model"])
    ask = await make_ask(model, adapter, chat, inbound.headers, inbound.request_id)
    view = await services.routing.explain(ask)
    answer = {"model": model.id, "policy": model.config.policy.value, **view}
    await out.send(200, [(b"content-type", b"application/json")], msgspec.json.encode(answer))
