"""docs/http_api.md names every route, error code and decision word that the code has, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from sgl_router.admin.health import serve_liveness
from sgl_router.errors import ErrorCode, RouterError
from sgl_router.placement import DecisionReason, Unmatched
from sgl_router.runtime.surface import client_routes, explain_route, forwarded_routes, probe_routes

PAGE = (Path(__file__).parents[2] / "docs/http_api.md").read_text()


def first_cells(header: str) -> list[str]:
    """The first column of the table that begins with `header`."""
    rows = PAGE.partition(f"\n{header}")[2].splitlines()[2:]
    return [row.split("|")[1] for row in rows[: next(at for at, row in enumerate(rows) if not row.startswith("|"))]]


def words(cells: list[str]) -> set[str]:
    return {word for cell in cells for word in re.findall(r"`([^`]+)`", cell)}


def test_every_route_has_its_row_and_its_methods() -> None:
    routes = [*client_routes(), *probe_routes(), explain_route(), *forwarded_routes(serve_liveness)]
    assert words(first_cells("| route | methods |")) == {route.template for route in routes}
    for route in routes:
        row = next(line for line in PAGE.splitlines() if line.startswith("| [") and f"`{route.template}`" in line)
        assert row.split("|")[2].strip() == route.allow, route.template
        assert f"{route.allow.partition(',')[0]} {route.template}`" in PAGE, f"{route.template} has no section"


def test_every_error_code_has_its_status() -> None:
    kinds = {kind.code: kind.status for kind in _kinds(RouterError) if kind.__module__ == RouterError.__module__}
    assert set(kinds) == set(ErrorCode)
    for code, status in kinds.items():
        assert re.search(rf"^\| `{code.value}` \| {status} \|", PAGE, re.MULTILINE), code
    assert words(first_cells("| code | status |")) == {code.value for code in ErrorCode}


def test_every_word_of_a_decision_is_explained() -> None:
    assert words(first_cells("| `reason` | |")) == {reason.value for reason in DecisionReason}
    assert words(first_cells("| `unmatched` | |")) == {reason.value for reason in Unmatched}


def _kinds(kind: type[RouterError]) -> list[type[RouterError]]:
    return [found for below in kind.__subclasses__() for found in (below, *_kinds(below))]
