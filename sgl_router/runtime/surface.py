"""The HTTP surface of each kind of process: one place that names every route."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from sgl_router.admin.decisions import decisions_route
from sgl_router.admin.explain import serve_explain
from sgl_router.admin.health import serve_liveness, serve_readiness
from sgl_router.admin.metrics import serve_metrics
from sgl_router.admin.snapshot import SNAPSHOT_PATH, snapshot_route
from sgl_router.admin.workers import serve_workers
from sgl_router.api.chat import serve_chat
from sgl_router.api.models import MODELS_PATH, serve_model, serve_models
from sgl_router.api.tokenize import serve_detokenize, serve_tokenize
from sgl_router.http.routes import Route, Routes, Serve

if TYPE_CHECKING:
    from sgl_router.kv_events import KvIndex
    from sgl_router.routing import DecisionLog

__all__ = ["explain_route", "fleet_routes", "forwarded_routes", "listeners"]


def listeners(
    main: socket.socket, admin: socket.socket | None, operators: list[Route]
) -> list[tuple[socket.socket, Routes]]:
    """What is answered on which socket: operators' routes on `admin` where there is one, else beside the clients'."""
    if admin is None:
        return [(main, Routes([*client_routes(), *probe_routes(), *operators]))]
    return [
        (main, Routes([*client_routes(), *probe_routes()])),
        (admin, Routes([*probe_routes(), *operators])),
    ]


def client_routes() -> list[Route]:
    """What clients call."""
    return [
        Route("/v1/chat/completions", connects=True, POST=serve_chat),
        Route("/v1/tokenize", POST=serve_tokenize),
        Route("/v1/detokenize", POST=serve_detokenize),
        Route(MODELS_PATH, GET=serve_models),
        Route(MODELS_PATH + "/{id}", GET=serve_model),
    ]


def probe_routes() -> list[Route]:
    """What a service manager or load balancer asks, on every listener."""
    return [
        Route("/healthz", GET=serve_liveness),
        Route("/health", GET=serve_liveness),
        Route("/readyz", GET=serve_readiness),
    ]


def explain_route() -> Route:
    """An operators' route that takes a tokenizer."""
    return Route("/internal/explain", POST=serve_explain)


def fleet_routes(decisions: DecisionLog, index: KvIndex) -> list[Route]:
    """Operators' routes of the process that has the index and decides."""
    return [
        Route("/workers", GET=serve_workers),
        Route("/metrics", GET=serve_metrics),
        Route("/internal/decisions", GET=decisions_route(decisions)),
        Route(SNAPSHOT_PATH, GET=snapshot_route(index)),
    ]


def forwarded_routes(forward: Serve) -> list[Route]:
    """The same in every other process: `forward` has that one answer."""
    return [
        Route("/workers", GET=forward),
        Route("/metrics", GET=forward),
        Route("/internal/decisions", GET=forward),
        Route(SNAPSHOT_PATH, GET=forward),
    ]
