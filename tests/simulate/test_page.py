"""The page around a report."""

from __future__ import annotations

import re

from sgl_router.lab.simulate.page import COLOURS, figure, legend, page


def test_text_is_escaped_and_colours_are_there_for_both_shades() -> None:
    body = legend(["<a>"] * (COLOURS + 1)) + figure("<b>", "<c>", "<svg></svg>")
    text = page("<d>", body)
    assert text.startswith("<!doctype html>")
    assert not re.search("<[abcd]>", text.partition("<body>")[2])
    assert "<title>&lt;d&gt;</title>" in text and "<svg></svg>" in text
    assert text.count("background:var(--series-0)") == 2, "the ninth has the first one's colour"
    for number in range(COLOURS):
        assert text.count(f"--series-{number}: ") == 2
    light, dark = text.split("@media")[0], text.split("@media")[1].split("}")[0]
    for variable in set(re.findall(r"var\((--[a-z0-9-]+)\)", text)):
        assert f"{variable}: " in light and f"{variable}: " in dark
