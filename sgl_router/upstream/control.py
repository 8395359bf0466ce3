"""One bounded GET, or POST, to a worker's control endpoints."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import NamedTuple

import aiohttp

from sgl_router.descriptors import shortage, tell_shortage
from sgl_router.upstream.fault import WorkerFault

__all__ = ["FetchError", "Reply", "control_session", "fetch"]


class Reply(NamedTuple):
    status: int
    body: bytes


class FetchError(Exception):
    """No answer, or none that can be used. The text names no address: status pages show it."""

    def __init__(self, fault: WorkerFault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


def control_session() -> aiohttp.ClientSession:
    """A session for probes: no proxies from the environment, no cookies, a fresh connection each time.

    A reused connection would prove that the old process still answers on it, not that a new request can get in.
    The pool is unbounded because every worker has at most one request under way: one that hangs delays nobody else.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, force_close=True),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
    )


async def fetch(
    session: aiohttp.ClientSession,
    url: str,
    path: str,
    *,
    api_key: str | None,
    timeout_secs: float,
    max_bytes: int,
    body: bytes | None = None,
) -> Reply:
    """GET url + path, or POST a JSON `body` there. Redirects are not followed: the key goes to the configured worker
    and nowhere else."""
    headers = {"Accept-Encoding": "identity"}
    if body is not None:
        headers["Content-Type"] = "application/json"
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    timeout = aiohttp.ClientTimeout(total=timeout_secs)
    try:
        async with session.request(
            "GET" if body is None else "POST",
            url + path,
            data=body,
            headers=headers,
            timeout=timeout,
            allow_redirects=False,
        ) as response:
            answer = bytearray()
            async for chunk in response.content.iter_any():
                answer += chunk
                if len(answer) > max_bytes:
                    raise FetchError(WorkerFault.TOO_LARGE, f"the answer to {path} is larger than {max_bytes} bytes")
            return Reply(response.status, bytes(answer))
    except asyncio.TimeoutError:
        raise FetchError(WorkerFault.TIMED_OUT, f"no answer to {path} within {timeout_secs:g} s") from None
    except aiohttp.ClientSSLError:
        raise FetchError(WorkerFault.CONNECT_FAILED, "the TLS handshake failed") from None
    except aiohttp.ClientConnectorError as error:
        _own_shortage(error.os_error)
        raise FetchError(WorkerFault.CONNECT_FAILED, _why(error.os_error)) from None
    except aiohttp.ClientResponseError:
        raise FetchError(WorkerFault.MALFORMED, f"{path} was answered by something that does not speak HTTP") from None
    except (aiohttp.InvalidURL, UnicodeError):
        raise FetchError(WorkerFault.CONNECT_FAILED, "the worker URL cannot be dialled") from None
    except (aiohttp.ClientError, OSError) as error:
        _own_shortage(error)
        raise FetchError(WorkerFault.CONNECTION_LOST, f"the connection broke during {path}") from None


def _own_shortage(error: BaseException) -> None:
    """Raises FetchError where the router is to blame. No port to reach this one address from is not such a case: the
    worker is out of reach for as long as that lasts, and others are not."""
    code = shortage(error)
    if code is not None and code != errno.EADDRNOTAVAIL:
        tell_shortage(code, "workers cannot be asked for their health and load")
        raise FetchError(WorkerFault.ROUTER_SHORT, "the router is short of file descriptors or memory") from None


def _why(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, socket.gaierror):
        return "the host name does not resolve"
    return f"connection failed: {os.strerror(error.errno)}" if error.errno else "connection failed"
