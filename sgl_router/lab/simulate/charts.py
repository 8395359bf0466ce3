"""Line charts as inline SVG: no scripts, nothing to load. Colours come from the page's CSS variables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Line", "line_chart"]

_WIDTH, _HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 10, 42
_TICKS = 6
# What a logarithmic axis spans at least: values that differ by rounding alone are one line.
_LEAST_SPAN = 2.0


@dataclass(frozen=True)
class Line:
    """One curve. `colour` counts the page's series colours."""

    name: str
    colour: int
    xs: Sequence[float]
    ys: Sequence[float]
    dashed: bool = False


class _Axis:
    def __init__(self, low: float, high: float, start: float, stop: float, *, log: bool = False) -> None:
        self.log = log
        if log:
            low, high = math.log10(low), math.log10(high)
        self.low, self.high = low, high if high > low else low + 1.0
        self._start = start
        self._scale = (stop - start) / (self.high - self.low)

    def at(self, value: float) -> float:
        if self.log:
            value = math.log10(max(value, 1e-12))
        return self._start + (min(max(value, self.low), self.high) - self.low) * self._scale

    def ticks(self) -> list[float]:
        if self.log:
            return _log_ticks(self.low, self.high)
        step = _nice((self.high - self.low) / _TICKS)
        first = math.ceil(self.low / step - 1e-9)
        return [step * count for count in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(low), math.ceil(high) + 1)
    digits = (1, 2, 5) if high - low < 3 else (1,)
    ticks = [digit * 10.0**decade for decade in decades for digit in digits]
    return [tick for tick in ticks if low - 1e-9 <= math.log10(tick) <= high + 1e-9]


def _nice(step: float) -> float:
    size = 10.0 ** math.floor(math.log10(step))
    return next((size * factor for factor in (1, 2, 2.5, 5) if size * factor >= step), size * 10)


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    x_from: float = 0.0,
    y_to: float | None = None,
    percent: bool = False,
) -> str:
    """An SVG element. With `log_x`, x values below a thousandth of the greatest are drawn at the edge."""
    xs = [x for line in lines for x in line.xs]
    ys = [y for line in lines for y in line.ys]
    right, left = max(xs, default=1.0), x_from
    if log_x:
        right = max(right, 1e-9)
        above = [x for x in xs if x >= right / 1e3]
        left = min(min(above, default=right), right / _LEAST_SPAN)
    x = _Axis(left, right, _LEFT, _WIDTH - _RIGHT, log=log_x)
    y = _Axis(0.0, 1.05 * max(ys, default=1.0) if y_to is None else y_to, _HEIGHT - _BOTTOM, _TOP)
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">']
    parts += _grid(x, y, percent)
    parts.append(
        f'<text class="label" x="{(_LEFT + _WIDTH - _RIGHT) / 2:.0f}" y="{_HEIGHT - 6}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
        f'<text class="label" transform="translate(12 {(_TOP + _HEIGHT - _BOTTOM) / 2:.0f}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_label)}</text>'
    )
    for line in lines:
        points = " ".join(f"{x.at(a):.1f},{y.at(b):.1f}" for a, b in zip(line.xs, line.ys, strict=True))
        dash = ' stroke-dasharray="5 4"' if line.dashed else ""
        parts.append(
            f'<polyline class="line" style="stroke:var(--series-{line.colour})"{dash} points="{points}">'
            f"<title>{escape(line.name)}</title></polyline>"
        )
    parts.append("</svg>")
    return "\n".join(parts)


def _grid(x: _Axis, y: _Axis, percent: bool) -> Iterable[str]:
    bottom = _HEIGHT - _BOTTOM
    for tick in y.ticks():
        at = y.at(tick)
        text = f"{tick:.0%}" if percent else _short(tick)
        yield f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        yield f'<text class="tick" x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{text}</text>'
    for tick in x.ticks():
        at = x.at(tick)
        yield f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{bottom}"/>'
        yield f'<text class="tick" x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{_short(tick)}</text>'


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:g}"
