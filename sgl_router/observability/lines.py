"""The log line of a request, written straight from its record: what structlog would print, at a tenth of its price."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from operator import attrgetter
from time import gmtime, strftime, time_ns
from typing import TYPE_CHECKING, Any

import msgspec

from sgl_router.placement import LOG_FIELDS, LOG_FIRST

if TYPE_CHECKING:
    from sgl_router.observability.record import RequestRecord
    from sgl_router.observability.sink import LineSink

__all__ = ["JsonLines", "TextLines"]

_EVENT = "request"
# Milliseconds are a whole number of hundredths: the digits of the rounded float, mostly without formatting a float.
_SHORT = 4096
_MS = tuple(repr(number / 100) for number in range(_SHORT))
_DIGITS = tuple(f"{number:03d}" for number in range(1000))
_FIRST_DIGITS = ("", *(f".000{digits}" for digits in _DIGITS[1:]))

_first_values = attrgetter(*(place for _, place in LOG_FIRST))
_leg_values = attrgetter(*(place for _, place in LOG_FIELDS))
_TEXT_FIRST = "".join(f" {name}=%s" for name, _ in LOG_FIRST)
_TEXT_LEG = "".join(f" {name}=%s" for name, _ in LOG_FIELDS)
_JSON_FIRST = "".join(f',"{name}":"%s"' for name, _ in LOG_FIRST)
_JSON_LEG = "".join(f',"{name}":%s' for name, _ in LOG_FIELDS)

_odd_in_text = re.compile(r"[ \t\r\n=\"']").search
_odd_in_json = re.compile(r"[^!#-\[\]-~]").search


class _Lines:
    """One output format. `info` and `warning` are what `write` is given for a line of that level; empty: not wanted."""

    def __init__(self, sink: LineSink, level: int, info: str, warning: str) -> None:
        self._sink = sink
        self.info = info if level <= logging.INFO else ""
        self.warning = warning if level <= logging.WARNING else ""
        self._millis = -1
        self._stamp = ""
        self._digits = _DIGITS
        self._words: dict[str, str] = {}  # models, as they are printed

    def _word(self, name: str) -> str:
        """A model's name as printed, remembered."""
        word = self._words.get(name)
        if word is None:
            word = self._words[name] = self._quoted(name)
        return word

    def _quoted(self, name: str) -> str:
        raise NotImplementedError

    def write_fields(self, fields: Mapping[str, object], level: str, now: float) -> None:
        """A line of these fields, in their order; `level` is `info` or `warning` of this object, `now` perf_counter's.
        For lines that are rare: `write` is for those of every request."""
        raise NotImplementedError

    def _now(self) -> str:
        """UTC in ISO 8601 as `datetime.isoformat` has it: a whole second is written without a fraction."""
        micros = time_ns() // 1000
        if (millis := micros // 1000) != self._millis:
            self._enter(millis)
        return f"{self._stamp}{self._digits[micros - millis * 1000]}Z"

    def _enter(self, millis: int) -> None:
        """A new millisecond: most lines under load fall into one that another line has begun."""
        second, fraction = divmod(millis, 1000)
        stamp = strftime("%Y-%m-%dT%H:%M:%S", gmtime(second))
        self._stamp = f"{stamp}.{fraction:03d}" if fraction else stamp
        self._digits = _DIGITS if fraction else _FIRST_DIGITS
        self._millis = millis


class TextLines(_Lines):
    """`prefix` is what stands between the time and the first field, by level."""

    def __init__(self, sink: LineSink, level: int, prefix: Mapping[str, str]) -> None:
        super().__init__(sink, level, prefix["info"], prefix["warning"])

    def _quoted(self, name: str) -> str:
        return repr(name) if _odd_in_text(name) else name

    def write(self, record: RequestRecord, prefix: str) -> None:
        """Workers' ids and enum values need no quoting, models are few; a request's id is the client's."""
        placement = record.placement
        ended, started, decided = record.ended_at, record.started_at, record.decided_at
        if placement is None or decided is None or record.error is not None or len(placement.legs) > 1:
            self.write_fields(record.fields(), prefix, ended)
            return
        took = int((ended - started) * 1e5 + 0.5)
        deciding = int((decided - started) * 1e5 + 0.5)
        if record.first_byte_at is None:
            first_byte = ""
        else:
            waited = int((record.first_byte_at - started) * 1e5 + 0.5)
            first_byte = f" first_byte_ms={_MS[waited] if waited < _SHORT else waited / 100}"
        request_id = record.request_id
        if _odd_in_text(request_id):
            request_id = repr(request_id)
        after = "" if record.cached_tokens is None else f" cached_tokens={record.cached_tokens}"
        if record.streamed:
            after += " streamed=True"
        if record.attempts > 1:
            after += f" attempts={record.attempts}"
        leg, model = placement.legs[0], record.model_id
        unmatched = "" if leg.unmatched is None else f" unmatched={leg.unmatched._value_}"
        micros = time_ns() // 1000  # as in `_now`
        if (millis := micros // 1000) != self._millis:
            self._enter(millis)
        digits = self._digits[micros - millis * 1000]
        self._sink.add(
            f"{self._stamp}{digits}Z{prefix}method=POST status={record.status}"
            f" ms={_MS[took] if took < _SHORT else took / 100}{_TEXT_FIRST % _first_values(leg)}"
            f" request_id={request_id}"
            f" model={model if model is None else self._words.get(model) or self._word(model)}"
            f" outcome={record.outcome._value_}{_TEXT_LEG % _leg_values(leg)}{unmatched}"
            f" decide_ms={_MS[deciding] if deciding < _SHORT else deciding / 100}{first_byte}{after}\n",
            ended,
        )

    def write_fields(self, fields: Mapping[str, object], prefix: str, now: float) -> None:
        text = " ".join(f"{key}={_shown(value)}" for key, value in fields.items())
        self._sink.add(f"{self._now()}{prefix}{text}\n", now)


class JsonLines(_Lines):
    def __init__(self, sink: LineSink, level: int) -> None:
        super().__init__(sink, level, "info", "warning")

    def _quoted(self, name: str) -> str:
        return msgspec.json.encode(name).decode()

    def write(self, record: RequestRecord, level: str) -> None:
        placement = record.placement
        ended, started, decided = record.ended_at, record.started_at, record.decided_at
        if placement is None or decided is None or len(placement.legs) > 1 or record.error or record.status is None:
            self.write_fields(record.fields(), level, ended)
            return
        took = int((ended - started) * 1e5 + 0.5)
        deciding = int((decided - started) * 1e5 + 0.5)
        if record.first_byte_at is None:
            after = ""
        else:
            waited = int((record.first_byte_at - started) * 1e5 + 0.5)
            after = f',"first_byte_ms":{_MS[waited] if waited < _SHORT else waited / 100}'
        if record.cached_tokens is not None:
            after += f',"cached_tokens":{record.cached_tokens}'
        if record.streamed:
            after += ',"streamed":true'
        if record.attempts > 1:
            after += f',"attempts":{record.attempts}'
        request_id = record.request_id
        quoted = self._quoted(request_id) if _odd_in_json(request_id) else f'"{request_id}"'
        leg, model = placement.legs[0], record.model_id
        unmatched = "" if leg.unmatched is None else f',"unmatched":"{leg.unmatched._value_}"'
        of_leg = _JSON_LEG % _leg_values(leg)
        if leg.prompt_tokens is None:
            of_leg = of_leg.replace("None", "null")
        micros = time_ns() // 1000  # as in `_now`
        if (millis := micros // 1000) != self._millis:
            self._enter(millis)
        digits = self._digits[micros - millis * 1000]
        self._sink.add(
            f'{{"method":"POST","status":{record.status}'
            f',"ms":{_MS[took] if took < _SHORT else took / 100}'
            f'{_JSON_FIRST % _first_values(leg)},"request_id":{quoted},"model":'
            f"{'null' if model is None else self._words.get(model) or self._word(model)}"
            f',"outcome":"{record.outcome._value_}"{of_leg}{unmatched}'
            f',"decide_ms":{_MS[deciding] if deciding < _SHORT else deciding / 100}{after}'
            f',"event":"{_EVENT}","level":"{level}","timestamp":"{self._stamp}{digits}Z"}}\n',
            ended,
        )

    def write_fields(self, fields: Mapping[str, object], level: str, now: float) -> None:
        line = {**fields, "event": _EVENT, "level": level, "timestamp": self._now()}
        self._sink.add(msgspec.json.encode(line).decode() + "\n", now)


def _shown(value: Any) -> str:
    if isinstance(value, str) and not _odd_in_text(value):
        return value
    return repr(value)
