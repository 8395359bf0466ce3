"""One request to an OpenAI-compatible server, and what came of it."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec

from sgl_router.lab.replay.call import Call, Result
from sgl_router.lab.replay.stream import AnswerStream

__all__ = ["ChatClient", "ServerProblem", "base_url"]

_CONNECT_SECS = 10.0
_PROBE_SECS = 10.0
_SHOWN_BYTES = 400


class ServerProblem(RuntimeError):
    """The server cannot be asked for its models, or they leave open which one is meant."""


def base_url(text: str) -> str:
    """What `/v1/...` is put behind. ValueError for what is no HTTP address."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"expected an address like http://host:30000, got {text!r}")
    _ = parts.port  # ValueError where it is none
    base = text.rstrip("/")
    return base[:-3] if base.endswith("/v1") else base


class ChatClient:
    """`clock` is the replay's: seconds since it began. `gaps` collects every answer's times between texts."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None,
        timeout_secs: float,
        ignore_eos: bool,
        clock: Callable[[], float],
    ) -> None:
        self.model = ""
        self.gaps = array("d")
        self._url = url
        self._clock = clock
        self._ignore_eos = ignore_eos
        self._headers = {"content-type": "application/json", "accept": "text/event-stream"}
        if api_key is not None:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._timeout = aiohttp.ClientTimeout(total=timeout_secs, sock_connect=min(_CONNECT_SECS, timeout_secs))
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> ChatClient:
        # The bound on requests in flight is the sender's: one that waited in here would look like a slow server.
        connector = aiohttp.TCPConnector(limit=0)
        self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout, headers=self._headers)
        return self

    async def __aexit__(self, *problem: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def only_model(self) -> str:
        """The model the server has. Raises ServerProblem where there is not exactly one."""
        try:
            timeout = aiohttp.ClientTimeout(total=_PROBE_SECS)
            async with self._open().get(f"{self._url}/v1/models", timeout=timeout) as response:
                body = await response.read()
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise ServerProblem(f"{self._url} cannot be asked for its models: {_told(error)}") from None
        if response.status != 200:
            raise ServerProblem(f"{self._url}/v1/models: status {response.status}; name one with --model")
        try:
            names = [entry["id"] for entry in msgspec.json.decode(body)["data"]]
        except (msgspec.DecodeError, KeyError, TypeError):
            raise ServerProblem(f"{self._url}/v1/models: not a list of models; name one with --model") from None
        if len(names) != 1 or not isinstance(names[0], str):
            has = ", ".join(map(str, names)) or "none at the moment"
            raise ServerProblem(f"{self._url} has several models, or none: {has}; name one with --model")
        return names[0]

    def body(self, content: str, max_tokens: int) -> bytes:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._ignore_eos:
            body["ignore_eos"] = True
        return msgspec.json.encode(body)

    async def ask(self, call: Call, body: bytes) -> None:
        """Send a request and follow its answer to the end. `call.result` says how that went; nothing is raised."""
        call.sent_at = self._clock()
        try:
            async with self._open().post(f"{self._url}/v1/chat/completions", data=body) as response:
                call.status = response.status
                _note_decision(call, response.headers)
                await self._follow(call, response)
        except asyncio.TimeoutError:
            call.result, call.error = Result.TIMEOUT, f"not answered within {self._timeout.total:g} s"
        except (aiohttp.ClientError, OSError) as error:
            call.result = Result.BROKEN if call.status == 200 else Result.TRANSPORT
            call.error = _told(error)
        finally:
            call.finished_at = self._clock()

    async def _follow(self, call: Call, response: aiohttp.ClientResponse) -> None:
        if response.status != 200:
            said = await response.content.read(_SHOWN_BYTES)
            call.result, call.error = Result.STATUS, said.decode(errors="replace")
            return
        if response.content_type != "text/event-stream":
            call.result, call.error = Result.BROKEN, f"an answer of type {response.content_type}, no stream of events"
            return
        stream = AnswerStream(call, self.gaps)
        async for data in response.content.iter_any():
            if not stream.feed(data, self._clock()):
                return
        if stream.done:
            call.result = Result.ANSWERED
        else:
            call.result, call.error = Result.BROKEN, "the stream ended without [DONE]"

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise RuntimeError("the client is not open")
        return self._session


def _note_decision(call: Call, headers: Mapping[str, str]) -> None:
    """Where this router answers, it says who was chosen and why."""
    call.worker = headers.get("x-sgl-router-worker")
    parts = (part.strip().partition("=") for part in headers.get("x-sgl-router-decision", "").split(";"))
    fields = {name: value for name, _, value in parts}
    call.reason = fields.get("reason")
    try:
        matched = int(fields["matched"]) * int(fields["page"])
    except (KeyError, ValueError):
        return
    if "unmatched" not in fields:
        call.predicted_tokens = matched


def _told(error: BaseException) -> str:
    return str(error) or type(error).__name__
