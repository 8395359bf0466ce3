"""The list of workers written in the configuration."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

from sgl_router.config.urls import normalise_url
from sgl_router.discovery.base import Added, DiscoveryEvent

__all__ = ["StaticUrls"]


class StaticUrls:
    """Announces every configured URL once, then stays silent for ever."""

    def __init__(self, urls: Iterable[str]) -> None:
        self._urls = tuple(dict.fromkeys(normalise_url(url) for url in urls))

    async def events(self) -> AsyncIterator[DiscoveryEvent]:
        for url in self._urls:
            yield Added(url)
        await asyncio.Event().wait()
