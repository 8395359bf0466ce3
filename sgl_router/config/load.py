"""From a file or a mapping to a checked Config."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from sgl_router.config.errors import ConfigError, FieldError
from sgl_router.config.files import read_mapping
from sgl_router.config.schema import K8S_UNAVAILABLE, Config
from sgl_router.config.validate import check_rules, warnings_of
from sgl_router.config.walk import Walk


class LoadedConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A valid configuration, and what about it is unlikely to be meant."""

    config: Config
    warnings: list[str]


def load_config(path: str | os.PathLike[str]) -> LoadedConfig:
    """Read and check a .yaml, .yml or .toml file; raises ConfigError with every problem found.

    Relative `tokenizer_path`, `chat_template` and `kube_config` are looked up in the file's folder, then in the
    working directory; a `tokenizer_path` found in neither is taken for a hub id if it looks like one.
    """
    file = Path(path)
    return parse_config(read_mapping(file), base_dir=file.parent)


def _unavailable(tree: Any) -> list[FieldError]:
    """What stands before all other problems: mending them would not make the router start."""
    discovery = tree.get("discovery") if isinstance(tree, dict) else None
    if not isinstance(discovery, dict) or discovery.get("backend") != "k8s":
        return []
    return [FieldError(path="discovery.backend", message=K8S_UNAVAILABLE, value="k8s", expected="static_urls")]


def parse_config(
    raw: Mapping[Any, Any], *, base_dir: Path | None = None, env: Mapping[str, str] | None = None
) -> LoadedConfig:
    """Check decoded data; raises ConfigError with every problem found. `env` stands in for os.environ."""
    walk = Walk(Config)
    tree = walk.run(raw)
    errors = walk.errors
    if isinstance(tree, dict):
        errors = errors + check_rules(tree, base_dir or Path.cwd(), os.environ if env is None else env)
    if errors:
        raise ConfigError([*_unavailable(tree), *errors])
    try:
        config = msgspec.convert(tree, Config)
    except msgspec.ValidationError as error:  # the walk let through what the types do not: say so, do not crash
        raise ConfigError([FieldError(path="", message=str(error))]) from error
    return LoadedConfig(config=config, warnings=warnings_of(config))
