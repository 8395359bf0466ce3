"""The page that reports are: one HTML file that needs nothing else, light or dark as the reader's system is."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

__all__ = ["COLOURS", "figure", "legend", "page"]

_SHADES = (
    ("#2563c9", "#7aa7ff"),
    ("#c2410c", "#ff9d66"),
    ("#15803d", "#6ddc94"),
    ("#9333ea", "#cf9bff"),
    ("#b91c4b", "#ff8fae"),
    ("#0e7c86", "#5fd4de"),
    ("#8a6d00", "#e3c65c"),
    ("#4b5563", "#b6bfcc"),
)

COLOURS = len(_SHADES)
"""How many series colours there are, `--series-0` and on."""

_STYLE = """
:root { --page: #fbfbf9; --card: #ffffff; --ink: #1b1e24; --soft: #626875; --rule: #e3e4e0; --good: #e3f3e6; LIGHT }
@media (prefers-color-scheme: dark) {
  :root { --page: #14161a; --card: #1c1f25; --ink: #e9eaee; --soft: #9aa1ae; --rule: #32363e; --good: #203a28; DARK }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 1240px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: .95rem; margin: 0 0 .4rem; font-weight: 600; }
p { margin: .25rem 0 .75rem; color: var(--soft); max-width: 80ch; }
pre { overflow-x: auto; padding: 1rem; background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  font: 13px/1.45 ui-monospace, monospace; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; margin: .75rem 0; padding: 0; list-style: none; }
.legend li { display: flex; align-items: center; gap: .45rem; }
.swatch { width: 1.4rem; height: .25rem; border-radius: 2px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; background: var(--card); }
th, td { padding: .35rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); }
th { font-weight: 600; color: var(--soft); }
th:first-child, td:first-child { text-align: left; }
td.best { background: var(--good); font-weight: 600; }
tr.bound td { color: var(--soft); font-style: italic; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 1rem;
  margin-top: 1rem; }
figure { margin: 0; padding: .9rem 1rem .6rem; background: var(--card); border: 1px solid var(--rule);
  border-radius: 8px; }
figcaption { color: var(--soft); font-size: .85rem; }
svg { display: block; width: 100%; height: auto; }
.grid { stroke: var(--rule); stroke-width: 1; }
.tick, .label { fill: var(--soft); font-size: 11px; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.line:hover { stroke-width: 4; }
"""


def page(title: str, body: str) -> str:
    """`body` is HTML, `title` is text."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{_style()}</style>
</head>
<body>
{body}
</body>
</html>
"""


def _style() -> str:
    light, dark = (
        " ".join(f"--series-{number}: {pair[shade]};" for number, pair in enumerate(_SHADES)) for shade in (0, 1)
    )
    return _STYLE.replace("LIGHT", light).replace("DARK", dark)


def legend(names: Sequence[str]) -> str:
    """Names in the order of their colours, which begin again when they are used up."""
    entries = "".join(
        f'<li><span class="swatch" style="background:var(--series-{number % COLOURS})"></span>{escape(name)}</li>'
        for number, name in enumerate(names)
    )
    return f'<ul class="legend">{entries}</ul>'


def figure(title: str, caption: str, chart: str) -> str:
    """`chart` is HTML."""
    return f"<figure><h3>{escape(title)}</h3>{chart}<figcaption>{escape(caption)}</figcaption></figure>"
