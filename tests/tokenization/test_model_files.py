from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sgl_router.tokenization.model_files import ModelFiles, model_facts, uses_mistral_common


def facts(config: dict[str, Any] | None = None, name: str = "org/model", has_template: bool = True) -> Any:
    return model_facts(name, config or {}, own_template=has_template)


@pytest.mark.parametrize(
    ("config", "encoder"),
    [
        ({"architectures": ["DeepseekV41ForCausalLM"]}, "dsv41"),
        ({"architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v41"}, "dsv41"),
        ({"architectures": ["DeepseekV4ForCausalLM"]}, "dsv4"),
        ({"architectures": ["KimiK3ForConditionalGeneration"]}, "kimi_k3"),
        ({"architectures": ["InklingForConditionalGeneration"]}, "inkling"),
        ({"model_type": "minimax_m3_vl"}, "minimax_m3"),
        ({"model_type": "internvl_chat"}, "conversation"),
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, None),
        # Its chats are rendered by its own template; only /v1/responses goes through harmony.
        ({"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss"}, None),
        ({"architectures": []}, None),
        ({"architectures": "x", "model_type": 3}, None),
        ({}, None),
    ],
)
def test_code_encoders_follow_the_architecture(config: dict[str, Any], encoder: str | None) -> None:
    assert facts(config).code_encoder == encoder


@pytest.mark.parametrize("architecture", ["DeepseekV3ForCausalLM", "DeepseekV32ForCausalLM"])
def test_deepseek_v3_is_encoded_by_code_only_without_a_template(architecture: str) -> None:
    config = {"architectures": [architecture]}
    assert facts(config, has_template=False).code_encoder == "dsv32"
    assert facts(config, has_template=True).code_encoder is None


@pytest.mark.parametrize(
    ("name", "encoder"),
    [
        ("lmsys/vicuna-7b-v1.5", "conversation"),
        ("OpenGVLab/InternVL2_5-8B", "conversation"),
        ("openbmb/MiniCPM-V-2_6", "conversation"),
        ("openbmb/MiniCPM-V-4_6", None),
        ("Qwen/Qwen3-8B", None),
    ],
)
def test_some_model_names_mean_a_built_in_conversation_template(name: str, encoder: str | None) -> None:
    assert facts(name=name).code_encoder == encoder
    # Started with a template of their own, the workers do not look at the name.
    assert model_facts(name, {}, own_template=False, given_template=True).code_encoder is None


@pytest.mark.parametrize(
    ("model_type", "present", "expected"),
    [
        ("mistral", ["tokenizer.json", "tekken.json"], True),
        ("mistral3", ["tokenizer.json", "tekken.json"], True),
        ("mistral", ["tokenizer.json"], False),
        ("llama", ["tokenizer.json", "tekken.json"], False),
        ("llama", ["tekken.json"], True),
        (["mistral"], ["tokenizer.json", "tekken.json"], False),
    ],
)
def test_mistral_models_with_a_tekken_file_are_rendered_by_mistral_common(
    model_type: Any, present: list[str], expected: bool, tmp_path: Path
) -> None:
    for filename in present:
        (tmp_path / filename).write_text("{}")
    config = {"model_type": model_type}
    uses = uses_mistral_common(ModelFiles("m", tmp_path), config)
    assert uses is expected
    # A template given to the workers is not looked at either.
    facts = model_facts("m", config, own_template=True, given_template=True, mistral_common=uses)
    assert facts.code_encoder == ("mistral_common" if expected else None)


@pytest.mark.parametrize(
    ("config", "multimodal"),
    [
        ({"architectures": ["Mistral3ForConditionalGeneration"], "text_config": {}}, True),
        ({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {}}, False),
        ({"architectures": ["X"], "text_config": {}, "language_model_only": True}, False),
        ({"architectures": ["LlamaForCausalLM"]}, False),
    ],
)
def test_multimodal_models_are_those_the_engine_serves_so_by_default(config: Any, multimodal: bool) -> None:
    assert facts(config).multimodal is multimodal


def test_context_length_may_sit_in_the_text_config() -> None:
    assert facts({"max_position_embeddings": 8}).context_length == 8
    assert facts({"text_config": {"max_position_embeddings": 9}}).context_length == 9
    assert facts({"max_position_embeddings": True}).context_length is None


def test_files_are_read_leniently(tmp_path: Path) -> None:
    files = ModelFiles("m", tmp_path)
    (tmp_path / "good.json").write_text(json.dumps({"a": 1}))
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    assert files.read_json("good.json") == {"a": 1}
    assert [files.read_json(name) for name in ("bad.json", "list.json", "none.json")] == [{}, {}, {}]
    assert files.find("none.json") is None


def test_hub_files_come_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.utils

    (tmp_path / "config.json").write_text('{"a": 1}')

    def cached_file(name: str, filename: str) -> str | None:
        if filename != "config.json":
            raise OSError("offline")
        return str(tmp_path / filename)

    monkeypatch.setattr(transformers.utils, "cached_file", cached_file)
    files = ModelFiles("org/model", None)
    assert files.read_json("config.json") == {"a": 1}
    assert files.find("chat_template.json") is None


@pytest.mark.parametrize(
    ("config", "size"),
    [
        ({}, None),
        ({"vocab_size": 151_936}, 151_936),
        ({"text_config": {"vocab_size": 262_208}}, 262_208),
        ({"vocab_size": 10, "llm_config": {"vocab_size": 20}}, 20),
        ({"vocab_size": True}, None),
        ({"vocab_size": "many", "text_config": "none"}, None),
    ],
)
def test_the_vocabulary_is_as_large_as_the_config_says(config: dict[str, object], size: int | None) -> None:
    assert model_facts("m", config, own_template=True).vocab_size == size
