"""Loading a tokenizer and its chat template the way the engine does."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import structlog

from sgl_router.tokenization.errors import TokenizerLoadError
from sgl_router.tokenization.model_files import ModelFiles

__all__ = ["LoadedTokenizer", "TemplateSource", "load_hf_tokenizer", "load_template_source"]

log = structlog.get_logger(__name__)


class LoadedTokenizer(NamedTuple):
    # A transformers tokenizer (fast wherever the files allow).
    tokenizer: Any
    files: ModelFiles


class TemplateSource(NamedTuple):
    """A chat template's text; `probe` is the text the engine inspects for the content format."""

    text: str
    probe: str
    # The configured file, None for a template that came with the tokenizer.
    file: Path | None = None


class _TokenizerJson(msgspec.Struct):
    """The part of a tokenizer.json worth reading without building the tokenizer."""

    pre_tokenizer: dict[str, Any] | None = None


# Classes whose add_bos_token flag transformers 5 drops while loading, and the engine restores.
_CLASSES_WITH_BOS_FLAG = frozenset(
    {
        "CodeLlamaTokenizer",
        "CodeLlamaTokenizerFast",
        "CohereTokenizerFast",
        "GemmaTokenizer",
        "GemmaTokenizerFast",
        "LlamaTokenizer",
        "LlamaTokenizerFast",
    }
)
_ABSTRACT_CLASSES = frozenset({"PreTrainedTokenizer", "PreTrainedTokenizerBase"})
_TOKENIZER_FILE = re.compile(r"(?:tokenizer.*|vocab.*|merges|tekken.*|.*\.(?:tiktoken|model|spm))(?:\.json|\.txt)?")
_HUB_ID = re.compile(r"[\w][\w.-]*(?:/[\w][\w.-]*)?")


def load_hf_tokenizer(tokenizer_path: str) -> LoadedTokenizer:
    """Load from a directory, a tokenizer.json, or a hub id. Raises TokenizerLoadError."""
    # Without torch, transformers announces at import that models are unavailable.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    path = Path(tokenizer_path).expanduser()
    try:
        if path.is_dir():
            return _from_directory(path)
        if path.is_file():
            return _from_file(path)
    except TokenizerLoadError:
        raise
    except Exception as error:
        raise TokenizerLoadError(f"tokenizer_path {tokenizer_path!r} cannot be loaded: {_reason(error)}") from error
    if not _HUB_ID.fullmatch(tokenizer_path) or tokenizer_path.endswith(".json"):
        raise TokenizerLoadError(f"tokenizer_path {tokenizer_path!r} does not exist")
    files = ModelFiles(tokenizer_path, None)
    try:
        return LoadedTokenizer(_load(tokenizer_path, files), files)
    except Exception as error:
        raise TokenizerLoadError(
            f"tokenizer_path {tokenizer_path!r} is no local path, and loading it from the hub failed"
            f" (offline machines need a local directory): {_reason(error)}"
        ) from error


def _from_directory(path: Path) -> LoadedTokenizer:
    # Some transformers make up an empty tokenizer for a directory that has none.
    if not any(_TOKENIZER_FILE.fullmatch(entry.name) for entry in path.iterdir()):
        raise TokenizerLoadError(f"tokenizer_path {str(path)!r} is a directory without tokenizer files")
    files = ModelFiles(path.name, path)
    return LoadedTokenizer(_load(str(path), files), files)


def _from_file(path: Path) -> LoadedTokenizer:
    if path.suffix != ".json":
        raise TokenizerLoadError(f"tokenizer_path {str(path)!r} is neither a directory nor a tokenizer.json")
    if path.name == "tokenizer.json" and (path.parent / "tokenizer_config.json").is_file():
        return _from_directory(path.parent)
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path), clean_up_tokenization_spaces=False)
    return LoadedTokenizer(tokenizer, ModelFiles(path.parent.name, path.parent))


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _load(name: str, files: ModelFiles) -> Any:
    from transformers import AutoTokenizer

    options = {"trust_remote_code": False, "clean_up_tokenization_spaces": False}
    tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True, **options)
    config = files.read_json("tokenizer_config.json")
    if type(tokenizer).__name__ == "TokenizersBackend":
        tokenizer = _by_declared_class(name, config, options, type(tokenizer)) or tokenizer
    _restore_components(tokenizer, files)
    _restore_bos_flag(tokenizer, config)
    return tokenizer


def _by_declared_class(name: str, config: dict[str, Any], options: dict[str, Any], loaded: type) -> Any:
    """The tokenizer as the class its config declares, where transformers fell back to the generic one."""
    import transformers

    declared = config.get("tokenizer_class")
    if not isinstance(declared, str) or declared in _ABSTRACT_CLASSES:
        return None
    declared_class = getattr(transformers, declared, None)
    if declared_class is None or declared_class is loaded:
        return None
    try:
        return declared_class.from_pretrained(name, **options)
    except (OSError, ValueError, TypeError, ImportError) as error:
        log.debug("declared tokenizer class not loadable", tokenizer_class=declared, error=_reason(error))
        return None


def _restore_components(tokenizer: Any, files: ModelFiles) -> None:
    """Put tokenizer.json's pre-tokenizer and decoder back where a transformers class replaced them."""
    backend = getattr(tokenizer, "_tokenizer", None)
    path = files.find("tokenizer.json")
    if backend is None or backend.pre_tokenizer is None or path is None:
        return
    declared = msgspec.json.decode(path.read_bytes(), type=_TokenizerJson).pre_tokenizer
    if declared is None or declared.get("type") == type(backend.pre_tokenizer).__name__:
        return
    from tokenizers import Tokenizer

    raw = Tokenizer.from_file(str(path))
    backend.pre_tokenizer = raw.pre_tokenizer
    backend.decoder = raw.decoder


def _restore_bos_flag(tokenizer: Any, config: dict[str, Any]) -> None:
    """Give Llama-, Gemma- and Cohere-class tokenizers the add_bos_token their config means (true unless it says no)."""
    if config.get("tokenizer_class") not in _CLASSES_WITH_BOS_FLAG:
        return
    from transformers import PreTrainedTokenizerFast

    add_bos = config.get("add_bos_token")
    add_eos = config.get("add_eos_token")
    wanted = {
        "add_bos_token": True if add_bos is None else add_bos,
        # A fast tokenizer's EOS is its post-processor's business alone.
        "add_eos_token": not isinstance(tokenizer, PreTrainedTokenizerFast) and bool(add_eos),
    }
    changed = False
    for attribute, value in wanted.items():
        if getattr(tokenizer, attribute, None) != value:
            setattr(tokenizer, f"_{attribute}", value)
            changed = True
    if changed and hasattr(tokenizer, "update_post_processor"):
        tokenizer.update_post_processor()


def load_template_source(
    chat_template: str | None, tokenizer: Any, files: ModelFiles, *, multimodal: bool
) -> TemplateSource | None:
    """The template the engine would use; None where there is none. Raises TokenizerLoadError for a bad file."""
    if chat_template is not None:
        return _template_file(Path(chat_template).expanduser())
    found: Any = None
    if multimodal and files.find("chat_template.jinja") is None:
        # A processor's own template, which the engine prefers to the tokenizer's.
        found = files.read_json("chat_template.json").get("chat_template")
    found = found or getattr(tokenizer, "chat_template", None)
    if isinstance(found, dict):
        # Several named templates: the engine takes the first, whether or not the request has tools.
        found = next(iter(found.values()), None)
    return TemplateSource(found, found) if isinstance(found, str) else None


def _template_file(path: Path) -> TemplateSource:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerLoadError(f"chat_template {str(path)!r} cannot be read: {_reason(error)}") from error
    if path.suffix == ".json":
        source = _template_in_json(path, text)
        return TemplateSource(source, source, path)
    text = text.strip("\n")
    return TemplateSource(text.replace("\\n", "\n"), text, path)


def _template_in_json(path: Path, text: str) -> str:
    try:
        loaded = json.loads(text)
    except ValueError as error:
        raise TokenizerLoadError(f"chat_template {str(path)!r} is not valid JSON: {_reason(error)}") from error
    source = loaded.get("chat_template") if isinstance(loaded, dict) else loaded
    if isinstance(source, str):
        return source
    if isinstance(loaded, dict) and "sep_style" in loaded:
        raise TokenizerLoadError(
            f"chat_template {str(path)!r} describes a conversation template, which only the engine can render"
        )
    raise TokenizerLoadError(f"chat_template {str(path)!r} must hold a template under 'chat_template'")
