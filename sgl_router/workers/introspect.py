"""Asking a worker what it is."""

from __future__ import annotations

from dataclasses import replace

import aiohttp

from sgl_router.upstream.control import FetchError, Reply, fetch
from sgl_router.upstream.fault import WorkerFault
from sgl_router.workers.info import WorkerInfo
from sgl_router.workers.server_info import IntrospectionError, parse_model_list, parse_server_info

__all__ = ["IntrospectionError", "introspect"]

DEFAULT_TIMEOUT_SECS = 10.0  # /server_info waits for every scheduler's turn, which a long prefill delays
MAX_BODY_BYTES = 8 << 20


async def introspect(
    session: aiohttp.ClientSession,
    url: str,
    api_key: str | None = None,
    *,
    timeout_secs: float = DEFAULT_TIMEOUT_SECS,
    max_bytes: int = MAX_BODY_BYTES,
) -> WorkerInfo:
    """What runs at a normalised worker URL; IntrospectionError where that cannot be told.

    A server without /server_info that lists its models is taken as a plain worker without KV events.
    """

    async def get(path: str) -> Reply | None:
        try:
            reply = await fetch(session, url, path, api_key=api_key, timeout_secs=timeout_secs, max_bytes=max_bytes)
        except FetchError as error:
            raise IntrospectionError(error.fault, str(error)) from None
        if reply.status == 404:
            return None
        if reply.status != 200:
            raise _refused(path, reply.status, api_key)
        return reply

    info = None
    reply = await get("/server_info") or await get("/get_server_info")
    if reply is not None:
        info = parse_server_info(reply.body, url)
    if info is not None and info.served_model_name:
        return info
    models = await get("/v1/models")
    if models is not None:
        name, root = parse_model_list(models.body)
    elif info is not None and info.model_path:
        name, root = info.model_path, None
    else:
        raise IntrospectionError(WorkerFault.NOT_A_WORKER, "it has neither /server_info nor /v1/models")
    if info is not None:
        return replace(info, served_model_name=name)
    return WorkerInfo(
        served_model_name=name,
        model_path=root,
        mode_reported=False,
        notes=("the server has no SGLang /server_info: taken as a plain worker, routed without KV events",),
    )


def _refused(path: str, status: int, api_key: str | None) -> IntrospectionError:
    fault = WorkerFault.of_status(status)
    if fault is not WorkerFault.UNAUTHORIZED:
        return IntrospectionError(fault, f"HTTP {status} from {path}")
    hint = (
        "the key in the variable named by discovery.worker_api_key_env is not the worker's"
        if api_key
        else "the worker wants its API key, name the variable that holds it in discovery.worker_api_key_env"
    )
    return IntrospectionError(fault, f"HTTP {status} from {path}: {hint}")
