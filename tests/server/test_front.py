"""Which front the configuration means, and that both take the same routes."""

from __future__ import annotations

from typing import Any

import pytest

from sgl_router.server.aiohttp_front import AiohttpFront
from sgl_router.server.front import make_front
from sgl_router.server.http.front import NativeFront
from sgl_router.server.routes import DATA_ROUTES
from tests.conformance.rig import StubServices


@pytest.mark.parametrize(("kind", "expected"), [("native", NativeFront), ("aiohttp", AiohttpFront)])
async def test_the_configured_front_is_made(kind: str, expected: type) -> None:
    services: Any = StubServices()
    assert isinstance(make_front(services, kind), expected)


async def test_the_native_front_takes_every_data_route() -> None:
    services: Any = StubServices()
    front: Any = make_front(services)
    assert {path.decode(): found for path, found in front.routes.items()} == {
        path: (path, serve) for path, serve in DATA_ROUTES.items()
    }
