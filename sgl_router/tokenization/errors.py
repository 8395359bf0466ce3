"""What this package raises, and why a prompt cannot be rendered here."""

from __future__ import annotations

from enum import Enum

__all__ = [
    "InvalidTokenIds",
    "TokenizeBadRequest",
    "TokenizerLoadError",
    "Unrenderable",
    "UnrenderableReason",
    "invalid",
]


class UnrenderableReason(str, Enum):
    """Why the router does not know a prompt's tokens: metric label and log field as it is."""

    MEDIA = "media"
    NO_TEMPLATE = "no_template"
    TEMPLATE_ERROR = "template_error"
    INVALID_MESSAGES = "invalid_messages"
    CODE_ENCODER = "code_encoder"
    TOO_LONG = "too_long"


class Unrenderable(Exception):
    """The prompt's tokens are unknown: route by load, let the worker answer.

    `param` is the path of the offending field (`messages[2].role`), None where no field is at fault.
    """

    def __init__(self, reason: UnrenderableReason, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.param = param


class InvalidTokenIds(Unrenderable):
    """Ids sent by a client that are none of the model's: some engines do not survive them, so no worker may see them.

    `message` begins with `param`.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(UnrenderableReason.INVALID_MESSAGES, f"{path}: {problem}", path)


class TokenizerLoadError(Exception):
    """The configured tokenizer or chat template cannot be loaded. The text, for the operator, begins with the field."""


class TokenizeBadRequest(ValueError):
    """A body of `/v1/tokenize` or `/v1/detokenize` that the engine would answer with 400.

    `param` is the path of the offending field, which `message` does not repeat.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


def invalid(path: str, problem: str) -> Unrenderable:
    """A request field the engine refuses."""
    return Unrenderable(UnrenderableReason.INVALID_MESSAGES, f"{path}: {problem}", path)
