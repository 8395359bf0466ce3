"""The data routes: what is served where the tokenizers are, by whichever front."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from sgl_router.proxy import Outbound

from .chat import serve_chat
from .decisions import serve_explain
from .inbound import Inbound
from .tokens import serve_detokenize, serve_tokenize

if TYPE_CHECKING:
    from .services import Services

__all__ = ["DATA_ROUTES", "Routes", "Serve"]

Serve = Callable[["Services", Inbound, Outbound], Awaitable[None]]
Routes = Mapping[str, Serve]

# All of them take POST only.
DATA_ROUTES: Routes = {
    "/v1/chat/completions": serve_chat,
    "/v1/tokenize": serve_tokenize,
    "/v1/detokenize": serve_detokenize,
    "/internal/explain": serve_explain,
}
