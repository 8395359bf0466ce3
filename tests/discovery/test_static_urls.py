from __future__ import annotations

import asyncio

from sgl_router.config.schema import DiscoveryConfig, K8sConfig, StaticUrlsConfig
from sgl_router.discovery import Added, DiscoveryUnavailable, StaticUrls, make_discovery


async def test_every_url_is_announced_once_and_then_nothing() -> None:
    events = StaticUrls(["http://A:30000/", "http://b:30000", "http://a:30000"]).events()
    assert await anext(events) == Added("http://a:30000")
    assert await anext(events) == Added("http://b:30000")
    silence = asyncio.ensure_future(anext(events))
    done, _ = await asyncio.wait([silence], timeout=0.01)
    assert not done
    silence.cancel()
    await asyncio.gather(silence, return_exceptions=True)


async def test_iterating_again_announces_again() -> None:
    discovery = make_discovery(DiscoveryConfig(static_urls=StaticUrlsConfig(urls=["http://a:1"])))
    for _ in range(2):
        assert await anext(discovery.events()) == Added("http://a:1")


def test_a_backend_that_is_not_built_says_so() -> None:
    try:
        make_discovery(DiscoveryConfig(backend="k8s", k8s=K8sConfig(port=30000)))
    except DiscoveryUnavailable as error:
        assert str(error).startswith("discovery.backend: k8s is not available yet")
    else:
        raise AssertionError("k8s was accepted")
