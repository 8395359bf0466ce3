"""The files beside a tokenizer, and what the model's config says about how the engine encodes its chats."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["ModelFacts", "ModelFiles", "model_facts", "uses_mistral_common"]


class ModelFiles:
    """Reads small files from a local model directory or from a hub repository's cache."""

    def __init__(self, name: str, directory: Path | None) -> None:
        self.name = name
        self.directory = directory

    def find(self, filename: str) -> Path | None:
        if self.directory is not None:
            path = self.directory / filename
            return path if path.is_file() else None
        from transformers.utils import cached_file

        try:
            found = cached_file(self.name, filename)
        except (OSError, ValueError):
            return None
        return None if found is None else Path(found)

    def read_json(self, filename: str) -> dict[str, Any]:
        """The file's object; empty where there is none or it cannot be read."""
        path = self.find(filename)
        if path is None:
            return {}
        try:
            loaded = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return loaded if isinstance(loaded, dict) else {}


@dataclass(frozen=True)
class ModelFacts:
    """Engine behaviour that follows from the model rather than from its tokenizer."""

    # What renders this model's chats in the engine, where that is no Jinja template.
    code_encoder: str | None
    # The engine loads a multimodal processor by default for this model.
    multimodal: bool
    context_length: int | None
    # The engine's bound of token ids: what its embedding has rows for.
    vocab_size: int | None = None


# Model paths whose chats the engine renders with a built-in conversation template, by name ...
_CONVERSATION_PATHS = re.compile(
    r"\bpoints\b|moss.*vl|internvl|janus|vicuna|llava-v1\.5|llava-next-video-7b|deepseek.*vl2"
    r"|llava-v1\.6-34b|llava-v1\.6-yi-34b|llava-next-video-34b|llava-onevision-qwen2"
    r"|phi-4-multimodal|deepseek-ocr|unlimited|paddleocr|whisper",
    re.IGNORECASE,
)
_MINICPM_PATH = re.compile(r"minicpm-(?:v|o)(?!-4[._][67])", re.IGNORECASE)
# ... and by the config's model_type.
_CONVERSATION_MODEL_TYPES = frozenset(
    {
        "deepseek-ocr",
        "deepseek_vl_v2",
        "internvl_chat",
        "minicpmo",
        "minicpmv",
        "moss_vl",
        "multi_modality",
        "paddleocr_vl",
        "phi4mm",
        "unlimited-ocr",
        "whisper",
    }
)
_MINICPM_JINJA_MODEL_TYPES = frozenset({"minicpmv4_6", "minicpmv4_7"})
# Model types whose tokenizer transformers takes from mistral_common, which the engine requires.
_MISTRAL_MODEL_TYPES = frozenset(
    {
        "ministral",
        "ministral3",
        "mistral",
        "mistral3",
        "mixtral",
        "pixtral",
        "voxtral",
        "voxtral_realtime",
    }
)
_SUB_CONFIGS = ("thinker_config", "llm_config", "language_config", "text_config")
# Multimodal models that the engine serves as text-only unless started with --enable-multimodal.
_TEXT_ONLY_BY_DEFAULT = frozenset(
    {
        "Gemma3ForConditionalGeneration",
        "InklingForConditionalGeneration",
        "Llama4ForConditionalGeneration",
        "Step3VLForConditionalGeneration",
    }
)


def uses_mistral_common(files: ModelFiles, config: Mapping[str, Any]) -> bool:
    """Whether the engine's tokenizer is mistral_common's, which renders chats itself, whatever templates there are."""
    model_type = config.get("model_type")
    if not (isinstance(model_type, str) and model_type in _MISTRAL_MODEL_TYPES) and files.find("tokenizer.json"):
        return False
    return files.find("tekken.json") is not None


def code_encoder_of(tokenizer_path: str, *, given_template: bool) -> str | None:
    """What encodes this model's chats in the engine's code, as far as that shows without loading a tokenizer or asking
    the hub; None where a template does, or nothing is known yet."""
    path = Path(tokenizer_path).expanduser()
    files: ModelFiles
    if path.is_dir():
        files = ModelFiles(path.name, path)
    elif path.is_file():
        files = ModelFiles(path.parent.name, path.parent)
    else:
        files = _CachedFiles(tokenizer_path, None)
    config = files.read_json("config.json")
    own = "chat_template" in files.read_json("tokenizer_config.json") or any(
        files.find(name) is not None for name in ("chat_template.jinja", "chat_template.json")
    )
    mistral = uses_mistral_common(files, config) and files.find("tokenizer.json") is None
    facts = model_facts(files.name, config, own_template=own, given_template=given_template, mistral_common=mistral)
    return facts.code_encoder


class _CachedFiles(ModelFiles):
    """Of a hub repository, what an earlier start has fetched."""

    def find(self, filename: str) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        try:
            found = try_to_load_from_cache(self.name, filename)
        except (OSError, ValueError):
            return None
        return Path(found) if isinstance(found, str) else None


def model_facts(
    name: str,
    config: Mapping[str, Any],
    *,
    own_template: bool,
    given_template: bool = False,
    mistral_common: bool = False,
) -> ModelFacts:
    """What the engine would decide from `config` (config.json, may be empty) and the model's directory name or hub id.

    `own_template`: the tokenizer has one; `given_template`: the workers were started with one; `mistral_common`: as
    `uses_mistral_common` has it.
    """
    architectures = config.get("architectures")
    architecture = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    model_type = config.get("model_type")
    model_type = model_type if isinstance(model_type, str) else ""
    return ModelFacts(
        code_encoder=_architecture_encoder(architecture, model_type, has_template=own_template or given_template)
        or ("mistral_common" if mistral_common else None)
        or (None if given_template else _conversation(name, model_type)),
        multimodal=_is_multimodal(architecture, config),
        context_length=_context_length(config),
        vocab_size=_vocab_size(config),
    )


def _architecture_encoder(architecture: str, model_type: str, *, has_template: bool) -> str | None:
    if model_type == "deepseek_v41" or "DeepseekV41" in architecture:
        return "dsv41"
    if "DeepseekV4" in architecture:
        return "dsv4"
    if "KimiK3" in architecture:
        return "kimi_k3"
    if "InklingForConditionalGeneration" in architecture:
        return "inkling"
    if "DeepseekV3" in architecture and not has_template:
        return "dsv32"
    # Its requests are rewritten by engine code before the template sees them.
    if model_type == "minimax_m3_vl":
        return "minimax_m3"
    return None


def _conversation(name: str, model_type: str) -> str | None:
    if model_type in _CONVERSATION_MODEL_TYPES or _CONVERSATION_PATHS.search(name):
        return "conversation"
    if model_type not in _MINICPM_JINJA_MODEL_TYPES and _MINICPM_PATH.search(name):
        return "conversation"
    return None


def _is_multimodal(architecture: str, config: Mapping[str, Any]) -> bool:
    if architecture in _TEXT_ONLY_BY_DEFAULT or config.get("language_model_only") is True:
        return False
    return any(isinstance(config.get(key), dict) for key in _SUB_CONFIGS)


def _context_length(config: Mapping[str, Any]) -> int | None:
    for source in (config, *(config.get(key) for key in _SUB_CONFIGS)):
        if isinstance(source, Mapping):
            length = source.get("max_position_embeddings")
            if isinstance(length, int) and not isinstance(length, bool) and length > 0:
                return length
    return None


def _vocab_size(config: Mapping[str, Any]) -> int | None:
    """The largest that is named: which of the sub-configs is the text model's is the engine's affair."""
    sizes = [
        source.get("vocab_size")
        for source in (config, *(config.get(key) for key in _SUB_CONFIGS))
        if isinstance(source, Mapping)
    ]
    return max((size for size in sizes if isinstance(size, int) and not isinstance(size, bool)), default=0) or None
