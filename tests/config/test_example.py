"""config.example.yaml: it loads, shows every key of the schema with a comment, and shows the true defaults."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import NODEFAULT, inspect, to_builtins

from sgl_router.config import Config, load_config
from sgl_router.config.files import read_mapping
from sgl_router.config.suggest import schema_paths

EXAMPLE = Path(__file__).parents[2] / "config.example.yaml"
COMMENTED_KEY = re.compile(r"^( *)# ((?: {2})*[a-z0-9_]+:(?: .*)?)$")


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """The example with its commented sections made part of it."""
    lines = EXAMPLE.read_text().splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("# admin:"))
    opened = [COMMENTED_KEY.sub(r"\1\2", line) if index >= start else line for index, line in enumerate(lines)]
    file = tmp_path / "config.yaml"
    file.write_text("\n".join(opened))
    return file


def test_the_example_loads_without_a_warning() -> None:
    loaded = load_config(EXAMPLE)
    assert loaded.warnings == []
    assert loaded.config.discovery.backend == "static_urls"


def test_with_its_k8s_block_it_loads_for_both_backends(whole: Path) -> None:
    assert load_config(whole).warnings == ["discovery.k8s: ignored, discovery.backend is static_urls"]
    whole.write_text(whole.read_text().replace("backend: static_urls", "backend: k8s"))
    loaded = load_config(whole)
    assert loaded.warnings == ["discovery.static_urls: ignored, discovery.backend is k8s"]
    assert loaded.config.discovery.k8s is not None
    assert loaded.config.discovery.k8s.selector == {"app": "sglang"}


def test_every_key_of_the_schema_is_in_it(whole: Path) -> None:
    labels = "discovery.k8s.selector."
    shown = {path for path, _ in leaves_and_sections(read_mapping(whole)) if not path.startswith(labels)}
    assert shown == set(schema_paths(inspect.type_info(Config)))


def test_every_value_in_it_is_the_default_where_there_is_one(whole: Path) -> None:
    shown = dict(leaves_and_sections(read_mapping(whole)))
    defaults = dict(defaults_of(inspect.type_info(Config)))
    assert len(defaults) > 30
    assert {path: shown[path] for path in defaults} == defaults


def test_every_key_in_it_has_a_comment() -> None:
    keys = [line for line in EXAMPLE.read_text().splitlines() if re.match(r"^[ #-]*[a-z0-9_]+: +[^ #]", line)]
    assert len(keys) > 35
    label = re.compile(r"  #     app: sglang")
    assert [line for line in keys if not re.search(r" # \S", line.partition(": ")[2]) and not label.match(line)] == []


def leaves_and_sections(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, list):
        for item in node:
            yield from leaves_and_sections(item, f"{path}[]")
    elif isinstance(node, dict):
        for key, value in node.items():
            below = f"{path}.{key}" if path else key
            yield below, value
            yield from leaves_and_sections(value, below)


def defaults_of(info: inspect.Type, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every key with a default of its own, except the sections that some routers do without."""
    if isinstance(info, inspect.Metadata):
        yield from defaults_of(info.type, path)
    elif isinstance(info, inspect.UnionType):
        for one in info.types:
            yield from defaults_of(one, path)
    elif isinstance(info, inspect.ListType):
        yield from defaults_of(info.item_type, f"{path}[]")
    elif isinstance(info, inspect.StructType):
        for field in info.fields:
            below = f"{path}.{field.name}" if path else field.name
            needed = below in ("admin", "discovery.static_urls", "discovery.k8s", "discovery.k8s.selector")
            if field.default is not NODEFAULT and not needed:
                yield below, to_builtins(field.default)
            yield from defaults_of(field.type, below)
