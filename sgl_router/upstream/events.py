"""A worker's server-sent events, as far as the router looks at them: the first ones and the last ones. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from sgl_router.upstream.verdict import NOTHING, Said, Verdict, judge, judge_start

__all__ = ["MOST_BYTES", "FirstEvents", "data_of", "last_data"]

# An event that is longer is judged by its beginning.
MOST_BYTES = 64 << 10
_BOM = b"\xef\xbb\xbf"
_DONE = b"[DONE]"
_DONE_EVENT = b"data: [DONE]"


class FirstEvents:
    """Fed with a stream's pieces until an event says what the stream is. Keeps little more than MOST_BYTES."""

    __slots__ = ("_rest", "_started")

    def __init__(self) -> None:
        self._rest = b""  # of an event whose blank line has not come
        self._started = False

    def feed(self, piece: bytes) -> Verdict:
        """What the events say that `piece` completes: the first GOOD or ERROR, else the last OPENING or ABORTED."""
        rest = self._rest
        one = not rest and piece[:6] == b"data: " and piece[-2:] == b"\n\n" and piece.count(b"\n") == 2
        if one and b"\r" not in piece:
            return _judge(piece[6:-2])  # as every engine writes it
        text = rest + piece
        if not self._started:
            if len(text) < len(_BOM) and _BOM.startswith(text):
                self._rest = text
                return NOTHING
            self._started = True
            if text[:3] == _BOM:
                text = text[3:]
        half = text[-1:] == b"\r"  # perhaps of a CRLF
        text = _with_lf(text[:-1] if half else text)
        found, at = NOTHING, 0
        while (end := text.find(b"\n\n", at)) >= 0:
            verdict = _judge(data_of(text[at:end]))
            if verdict.said is not Said.NOTHING:
                found = verdict
            if verdict.said is Said.GOOD or verdict.said is Said.ERROR:
                return verdict
            at = end + 2
        rest = text[at:]
        if len(rest) > MOST_BYTES:
            at = 0 if rest[:5] == b"data:" else rest.find(b"\ndata:") + 1
            if at or rest[:5] == b"data:":
                return judge_start(rest[at + 5 :])
            rest = b":"  # a comment or another field, without end: so is what follows
        self._rest = rest + b"\r" if half else rest
        return found

    def end(self) -> Verdict:
        """The stream is over: what an event without its blank line says."""
        return _judge(data_of(self._rest.rstrip(b"\r\n")))


def data_of(event: bytes) -> bytes:
    """The data of one event with LF at its lines' ends, joined; empty where it has none."""
    if event[:6] == b"data: " and b"\n" not in event:
        return event[6:]
    lines = [line[5:] for line in event.split(b"\n") if line[:5] == b"data:"]
    return b"\n".join([line[1:] if line[:1] == b" " else line for line in lines])


def last_data(tail: bytes) -> Iterator[bytes]:
    """The data of a stream's events, the last one first, `[DONE]` and what has none left out. The first event of
    `tail` may be cut."""
    tail = _with_lf(tail)
    end = len(tail)
    while end > 0:
        at = tail.rfind(b"\n\n", 0, end)
        event = tail[at + 2 if at >= 0 else 0 : end]
        end = at
        if event and event != _DONE_EVENT and (data := data_of(event)) and data.strip() != _DONE:
            yield data


def _with_lf(text: bytes) -> bytes:
    return text.replace(b"\r\n", b"\n").replace(b"\r", b"\n") if b"\r" in text else text


def _judge(data: bytes) -> Verdict:
    return NOTHING if not data or data.strip() == _DONE else judge(data)
