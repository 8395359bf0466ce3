"""Mooncake-format traces: one JSON object per line, prompts as ids of blocks of 512 tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec

__all__ = ["BLOCK_TOKENS", "TraceError", "TraceRow", "parse_trace", "read_trace", "scale_rows"]

BLOCK_TOKENS = 512
_SHOWN_CHARS = 60


class TraceError(ValueError):
    """A line that is no request; the text names line and field."""


@dataclass(frozen=True)
class TraceRow:
    """One request. `hash_ids`: a number for each block of the prompt, the last of which may be partly filled; equal
    numbers mean equal blocks after equal prefixes."""

    timestamp_ms: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...]


def read_trace(path: str | Path, *, limit: int | None = None, block_tokens: int = BLOCK_TOKENS) -> list[TraceRow]:
    """The first `limit` requests of a file, in order of time. Raises TraceError, OSError."""
    with Path(path).open("rb") as file:
        return parse_trace(file, name=str(path), limit=limit, block_tokens=block_tokens)


def parse_trace(
    lines: Iterable[bytes | str], *, name: str, limit: int | None = None, block_tokens: int = BLOCK_TOKENS
) -> list[TraceRow]:
    """See `read_trace`. Blank lines are skipped; what is not in order of time is put in order."""
    rows: list[TraceRow] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if limit is not None and len(rows) >= limit:
            break
        rows.append(_row(line, f"{name}:{number}", block_tokens))
    if not rows:
        raise TraceError(f"{name}: no requests")
    rows.sort(key=lambda row: row.timestamp_ms)
    return rows


def scale_rows(rows: Sequence[TraceRow], scale: Fraction) -> list[TraceRow]:
    """The rows with every length times `scale`, rounded up, so that each keeps its number of blocks."""
    if scale == 1:
        return list(rows)
    return [
        replace(
            row,
            input_length=math.ceil(row.input_length * scale),
            output_length=math.ceil(row.output_length * scale),
        )
        for row in rows
    ]


def _row(line: bytes | str, where: str, block_tokens: int) -> TraceRow:
    try:
        value = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise TraceError(f"{where}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise TraceError(f"{where}: expected an object, got {_shown(value)}")
    timestamp = _field(value, "timestamp", where)
    if isinstance(timestamp, bool) or not isinstance(timestamp, (int, float)) or not 0 <= timestamp < math.inf:
        raise TraceError(f"{where}: timestamp: expected milliseconds, 0 or more, got {_shown(timestamp)}")
    prompt = _integer(value, "input_length", where, least=1)
    output = _integer(value, "output_length", where, least=0)
    ids = _field(value, "hash_ids", where)
    if not isinstance(ids, list):
        raise TraceError(f"{where}: hash_ids: expected a list, got {_shown(ids)}")
    for position, block in enumerate(ids):
        if isinstance(block, bool) or not isinstance(block, int) or not 0 <= block < 1 << 63:
            raise TraceError(f"{where}: hash_ids[{position}]: expected an integer, 0 or more, got {_shown(block)}")
    if len(ids) not in (prompt // block_tokens, -(-prompt // block_tokens)):
        raise TraceError(
            f"{where}: hash_ids: {len(ids)} blocks for an input_length of {prompt}, "
            f"expected {-(-prompt // block_tokens)} of {block_tokens} tokens"
        )
    return TraceRow(float(timestamp), prompt, output, tuple(ids))


def _field(value: dict[str, Any], name: str, where: str) -> Any:
    if name not in value:
        raise TraceError(f"{where}: {name}: missing")
    return value[name]


def _integer(value: dict[str, Any], name: str, where: str, *, least: int) -> int:
    found = _field(value, name, where)
    if isinstance(found, bool) or not isinstance(found, int) or found < least:
        raise TraceError(f"{where}: {name}: expected an integer, {least} or more, got {_shown(found)}")
    return found


def _shown(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
