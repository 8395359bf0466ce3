"""The progress bar."""

from __future__ import annotations

import pytest

from sgl_router.cli.bar import Bar


def test_it_is_drawn_only_where_it_changed_and_leaves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Bar()
    bar.show(0, 4, "none, really none")
    bar.show(0, 4, "none, really none")
    bar.show(1, 4, "one")
    bar.wipe()
    first, second, wiped = capsys.readouterr().err.split("\r")[1:4]
    assert first == f"[{'.' * 32}] none, really none"
    assert second.rstrip() == f"[{'#' * 8}{'.' * 24}] one" and len(second) == len(first)
    assert not wiped.strip()
