"""What a response says at its end: token counts, and whether it ended as it should. Events are kept, not parsed, until
then."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from sgl_router.upstream.events import FirstEvents, last_data
from sgl_router.upstream.verdict import Said, judge, judge_start, usage_of

__all__ = ["BULK_BYTES", "WHOLE_BYTES", "DocumentTail", "Ending", "StreamTail", "document_ending"]

# A larger body is judged by its beginning and by what its `usage` stands in: parsing 4 MiB takes 8 ms.
WHOLE_BYTES = 256 << 10
# A larger piece is cut; an event of a stream is a few hundred bytes.
BULK_BYTES = 16 << 10
_PIECES = 16
_EVENTS = 7
_DOCUMENT_TAIL = 1 << 20
_CANDIDATES = 4
_LARGEST_COUNT = 10**12
_REPORT = b'"prompt_tokens'


class Ending(NamedTuple):
    """`said`, `status`: as in Verdict. Counts are None where they are not told."""

    said: Said
    status: int = 0
    cached_tokens: int | None = None
    output_tokens: int | None = None


class StreamTail:
    """Keeps the last pieces of a stream, 256 KiB at most and a few KiB as a rule. `add` is all that an event costs;
    pieces over BULK_BYTES are for `add_bulk`."""

    __slots__ = ("_pieces", "_usage", "add")

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque(maxlen=_PIECES)
        self._usage: dict[str, Any] | None = None
        self.add = self._pieces.append

    def add_bulk(self, piece: bytes) -> None:
        """Bulk may push the usage out that came before it, or stands at its beginning."""
        tail = b"".join((*self._pieces, piece))
        if _REPORT in tail:
            self._usage = next((usage for data in last_data(tail) if (usage := _reported(data))), self._usage)
        self.add(piece[-BULK_BYTES:])

    def ending(self) -> Ending:
        """What the last events say. Looks at eight of them at most, and only at such as may have something to say."""
        usage: dict[str, Any] | None = None
        said, status = Said.GOOD, 0
        text = b"".join(self._pieces)
        reports = _REPORT in text
        told = b'error"' not in text and b'abort"' not in text  # it ended well
        if told and not reports:
            return Ending(said, status, *_counts(self._usage))
        for number, data in enumerate(last_data(text)):
            if told and _REPORT not in data:
                if number == _EVENTS:
                    break
                continue
            verdict = judge(data)
            usage = usage or verdict.usage
            if not told and (verdict.ending or verdict.status):
                told = True
                if verdict.said is Said.ERROR or verdict.said is Said.ABORTED:
                    said, status = verdict.said, verdict.status
            if (told and (usage is not None or not reports)) or number == _EVENTS:
                break
        return Ending(said, status, *_counts(usage or self._usage))


class DocumentTail:
    """Keeps the last MiB of a body that is passed on in pieces."""

    __slots__ = ("_kept", "_pieces")

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self._kept = 0

    def add(self, piece: bytes) -> None:
        piece = piece[-_DOCUMENT_TAIL:]
        self._pieces.append(piece)
        self._kept += len(piece)
        while self._kept - len(self._pieces[0]) >= _DOCUMENT_TAIL:
            self._kept -= len(self._pieces.popleft())

    def ending(self) -> Ending:
        return Ending(Said.GOOD, 0, *_counts(_suffix_usage(b"".join(self._pieces))))


def document_ending(body: bytes) -> Ending:
    """Of a body that is not called a stream."""
    if body[:5] == b"data:":
        return _mislabelled(body)
    if len(body) <= WHOLE_BYTES:
        verdict = judge(body)
        said = Said.GOOD if verdict.said is Said.OPENING else verdict.said
        return Ending(said, verdict.status, *_counts(verdict.usage))
    verdict = judge_start(body[:4096])
    usage = _suffix_usage(body) if verdict.said is Said.GOOD else None
    return Ending(verdict.said, verdict.status, *_counts(usage))


def _mislabelled(body: bytes) -> Ending:
    """A stream whose head does not say so."""
    first, tail = FirstEvents(), StreamTail()
    verdict = first.feed(body)
    if verdict.said is Said.NOTHING:
        verdict = first.end()
    if verdict.said is not Said.GOOD and verdict.said is not Said.OPENING:
        return Ending(verdict.said, verdict.status)
    tail.add_bulk(body)
    return tail.ending()


def _suffix_usage(body: bytes) -> dict[str, Any] | None:
    """The top-level `usage` of a JSON object, by its end. With a brace in front, what begins at a key is valid JSON
    only where the key stands at the top level."""
    end, least = len(body), max(len(body) - _DOCUMENT_TAIL, 0)
    for _ in range(_CANDIDATES):
        end = body.rfind(b'"usage"', least, end)
        if end < 0:
            break
        if body[end - 1 : end] != b"\\" and (usage := usage_of(b"{" + body[end:])) is not None:
            return usage
    return None


def _reported(data: bytes) -> dict[str, Any] | None:
    return usage_of(data) if _REPORT in data else None


def _counts(usage: dict[str, Any] | None) -> tuple[int | None, int | None]:
    """Cached tokens of the prompt, and the completion's tokens."""
    if usage is None:
        return None, None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return _count(cached), _count(usage.get("completion_tokens"))


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < _LARGEST_COUNT else None
