"""Requests the engine turns down, and the bodies it says so with."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any


class Refusal(Exception):
    """An error answer. `from_scheduler` ones find a stream already begun and arrive inside it."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "BadRequestError",
        from_scheduler: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.kind = kind
        self.from_scheduler = from_scheduler

    def openai_body(self) -> dict[str, Any]:
        """The body on OpenAI endpoints: flat, unlike OpenAI's own."""
        kind = str(self.status) if self.from_scheduler and self.status != 400 else self.kind
        return {"object": "error", "message": self.message, "type": kind, "param": None, "code": self.status}

    def native_body(self) -> dict[str, Any]:
        """The body on /generate and its relatives."""
        return {"error": {"message": self.message}}

    def stream_body(self) -> dict[str, Any]:
        """The body of an error event inside a stream."""
        kind = HTTPStatus(self.status).name if self.from_scheduler else self.kind
        body = {"object": "error", "message": self.message, "type": kind, "param": None, "code": self.status}
        return {"error": body}


def invalid(message: str) -> Refusal:
    """A body that does not have the documented fields and types."""
    return Refusal(message, kind="Bad Request")


def queue_full() -> Refusal:
    """Back-pressure: too many requests wait already."""
    return Refusal("The request queue is full.", status=503, from_scheduler=True)
