"""Line charts."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest

from sgl_router.lab.simulate.charts import Line, line_chart


def points(svg: str) -> list[list[tuple[float, float]]]:
    return [
        [tuple(map(float, pair.split(","))) for pair in found.split()] for found in re.findall(r'points="([^"]*)"', svg)
    ]


def ticks(svg: str) -> list[str]:
    return re.findall(r'class="tick"[^>]*>([^<]*)<', svg)


def draw(*lines: Line, **options) -> str:
    svg = line_chart(lines, title="a & b", x_label="x < y", y_label="y", **options)
    ElementTree.fromstring(svg)
    return svg


def test_the_plot_spans_the_axes() -> None:
    svg = draw(Line("one", 0, [0.0, 10.0], [0.0, 1.0]), y_to=1.0, percent=True)
    assert points(svg) == [[(52.0, 258.0), (550.0, 10.0)]]
    assert ticks(svg) == ["0%", "20%", "40%", "60%", "80%", "100%", "0", "2", "4", "6", "8", "10"]
    assert "a &amp; b" in svg and "x &lt; y" in svg


def test_a_logarithmic_axis_shows_three_decades_at_most() -> None:
    svg = draw(Line("one", 1, [0.0, 0.001, 1.0, 10.0], [0.0, 0.1, 0.5, 1.0]), log_x=True, y_to=1.0)
    ((at_zero, _), (below, _), _, (last, _)) = points(svg)[0]
    assert at_zero == below == 52.0
    assert last == 550.0
    assert ticks(svg)[-3:] == ["2", "5", "10"]


def test_a_logarithmic_axis_does_not_spread_rounding_over_its_width() -> None:
    noisy = [0.1 + 0.2 + 1e-16 * number for number in range(5)]
    found = points(draw(Line("one", 0, noisy, [0.0, 0.2, 0.5, 0.7, 1.0]), log_x=True, y_to=1.0))
    assert {x for x, _ in found[0]} == {550.0}
    assert points(draw(Line("one", 0, [0.19, 0.2], [0.0, 1.0]), log_x=True))[0][0][0] > 500.0


@pytest.mark.parametrize("log_x", [False, True])
def test_flat_and_empty_data_are_drawn_too(log_x: bool) -> None:
    draw(Line("flat", 0, [0.0, 0.0], [0.0, 0.0]), Line("none", 1, [], []), log_x=log_x)
    draw(Line("dot", 0, [3.0], [2.0], dashed=True), log_x=log_x)
    draw(log_x=log_x)
