from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from sgl_router.tokenization import ModelTokenizer, TokenizerLoadError, Unrenderable, UnrenderableReason
from sgl_router.tokenization.loading import load_hf_tokenizer, load_template_source
from sgl_router.tokenization.model_files import ModelFiles

HELLO = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def model(tokenizer_dir: Path, tmp_path: Path) -> Path:
    path = tmp_path / "model"
    shutil.copytree(tokenizer_dir, path)
    return path


def source(tokenizer: Any, path: Path, chat_template: str | None = None, *, multimodal: bool = False) -> str | None:
    found = load_template_source(chat_template, tokenizer, ModelFiles(path.name, path), multimodal=multimodal)
    return None if found is None else found.text


class Named:
    """A tokenizer as far as its template goes."""

    def __init__(self, chat_template: Any) -> None:
        self.chat_template = chat_template


def test_a_directory_and_its_tokenizer_json_load_alike(model: Path) -> None:
    by_directory = ModelTokenizer.load(str(model))
    by_file = ModelTokenizer.load(str(model / "tokenizer.json"))
    assert by_directory.render(HELLO) == by_file.render(HELLO)
    assert by_file.render(HELLO).text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert by_file.max_model_len == 4096


async def test_a_lone_tokenizer_json_has_no_template(model: Path, tmp_path: Path) -> None:
    lone = tmp_path / "tokenizer.json"
    shutil.copy(model / "tokenizer.json", lone)
    tokenizer = ModelTokenizer.load(str(lone))
    assert len(await tokenizer.encode_text("hello there")) > 0
    assert tokenizer.max_model_len is None
    with pytest.raises(Unrenderable) as caught:
        await tokenizer.encode_chat(HELLO)
    assert caught.value.reason is UnrenderableReason.NO_TEMPLATE


@pytest.mark.parametrize("path", ["/no/such/directory", "./relative/nowhere", "a/b/c", "missing.json", "~/nope/x"])
def test_paths_that_do_not_exist_are_said_so(path: str) -> None:
    with pytest.raises(TokenizerLoadError, match="does not exist"):
        load_hf_tokenizer(path)


def test_files_that_are_no_tokenizer_are_said_so(tmp_path: Path) -> None:
    text = tmp_path / "model.txt"
    text.write_text("x")
    with pytest.raises(TokenizerLoadError, match=r"neither a directory nor a tokenizer\.json"):
        load_hf_tokenizer(str(text))
    broken = tmp_path / "tokenizer.json"
    broken.write_text("{}")
    with pytest.raises(TokenizerLoadError, match=r"tokenizer_path .* cannot be loaded"):
        load_hf_tokenizer(str(broken))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(TokenizerLoadError, match="directory without tokenizer files"):
        load_hf_tokenizer(str(empty))
    (empty / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerLoadError, match=r"tokenizer_path .* cannot be loaded"):
        load_hf_tokenizer(str(empty))


def test_an_unreachable_hub_is_a_load_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    def offline(*args: Any, **kwargs: Any) -> Any:
        raise OSError("We couldn't connect to the hub\nand more")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", offline)
    with pytest.raises(
        TokenizerLoadError, match=r"offline machines need a local directory.*couldn't connect"
    ) as caught:
        load_hf_tokenizer("org/model")
    assert "and more" not in str(caught.value)


def test_a_hub_id_is_loaded_through_transformers_without_remote_code(
    hf: Any, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers
    import transformers.utils

    seen: dict[str, Any] = {}

    def from_pretrained(name: str, **kwargs: Any) -> Any:
        seen.update(kwargs, name=name)
        return hf

    def cached_file(name: str, filename: str) -> str | None:
        path = tokenizer_dir / filename
        return str(path) if path.is_file() else None

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", from_pretrained)
    monkeypatch.setattr(transformers.utils, "cached_file", cached_file)
    loaded = load_hf_tokenizer("org/model")
    assert seen["name"] == "org/model"
    assert seen["trust_remote_code"] is False
    assert loaded.files.name == "org/model"


def test_a_jinja_file_is_trimmed_and_its_escaped_newlines_are_made_real(hf: Any, tmp_path: Path) -> None:
    path = tmp_path / "template.jinja"
    path.write_text("\n\n{{ 'a\\n' }}b\n\n")
    assert source(hf, tmp_path, str(path)) == "{{ 'a\n' }}b"


def test_a_json_file_may_hold_the_template(hf: Any, tmp_path: Path) -> None:
    path = tmp_path / "template.json"
    for content in ({"chat_template": "{{ 1 }}"}, "{{ 1 }}"):
        path.write_text(json.dumps(content))
        assert source(hf, tmp_path, str(path)) == "{{ 1 }}"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"name": "x", "sep_style": "CHATML"}', "conversation template"),
        ('{"template": "x"}', "under 'chat_template'"),
        ("[1]", "under 'chat_template'"),
        ("{", "not valid JSON"),
    ],
)
def test_json_files_without_one_are_refused(hf: Any, tmp_path: Path, content: str, problem: str) -> None:
    path = tmp_path / "template.json"
    path.write_text(content)
    with pytest.raises(TokenizerLoadError, match=problem):
        source(hf, tmp_path, str(path))


def test_template_files_that_cannot_be_read_are_refused(hf: Any, tmp_path: Path) -> None:
    with pytest.raises(TokenizerLoadError, match=r"chat_template .* cannot be read"):
        source(hf, tmp_path, str(tmp_path / "none.jinja"))
    (tmp_path / "latin.jinja").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(TokenizerLoadError, match=r"chat_template .* cannot be read"):
        source(hf, tmp_path, str(tmp_path / "latin.jinja"))


def test_a_configured_template_must_compile(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "broken.jinja"
    path.write_text("\n{{ 1 }}\n{% for %}")
    with pytest.raises(TokenizerLoadError, match=r"broken\.jinja.*does not compile: line 2"):
        ModelTokenizer.load(str(model), str(path))


async def test_a_tokenizers_own_broken_template_costs_only_its_chats(model: Path) -> None:
    (model / "chat_template.jinja").write_text("{% for %}")
    tokenizer = ModelTokenizer.load(str(model))
    assert len(await tokenizer.encode_text("hello")) > 0
    with pytest.raises(Unrenderable, match="does not compile") as caught:
        await tokenizer.encode_chat(HELLO)
    assert caught.value.reason is UnrenderableReason.TEMPLATE_ERROR


def test_of_several_named_templates_the_engine_takes_the_first(tmp_path: Path) -> None:
    assert source(Named({"tool_use": "T", "default": "D"}), tmp_path) == "T"
    assert source(Named({"default": "D", "tool_use": "T"}), tmp_path) == "D"
    assert source(Named({}), tmp_path) is None
    assert source(Named(None), tmp_path) is None


def test_a_multimodal_models_processor_template_comes_first(tmp_path: Path) -> None:
    (tmp_path / "chat_template.json").write_text('{"chat_template": "P"}')
    assert source(Named("T"), tmp_path, multimodal=True) == "P"
    assert source(Named("T"), tmp_path, multimodal=False) == "T"
    (tmp_path / "chat_template.jinja").write_text("T")
    assert source(Named("T"), tmp_path, multimodal=True) == "T"


async def test_mistral_models_are_matched_as_their_template_has_it_and_told_of(model: Path) -> None:
    before = await ModelTokenizer.load(str(model)).encode_chat(HELLO)
    (model / "config.json").write_text(json.dumps({"architectures": ["MistralForCausalLM"], "model_type": "mistral"}))
    (model / "tekken.json").write_text("{}")
    with structlog.testing.capture_logs() as logs:
        tokenizer = ModelTokenizer.load(str(model))
    assert [entry["log_level"] for entry in logs if "mistral_common" in entry["event"]] == ["warning"]
    assert list(await tokenizer.encode_chat(HELLO)) == list(before)


async def test_the_config_beside_the_tokenizer_tells_code_encoders(model: Path) -> None:
    (model / "config.json").write_text(json.dumps({"architectures": ["DeepseekV4ForCausalLM"]}))
    tokenizer = ModelTokenizer.load(str(model))
    with pytest.raises(Unrenderable) as caught:
        await tokenizer.encode_chat(HELLO)
    assert caught.value.reason is UnrenderableReason.CODE_ENCODER
    assert len(await tokenizer.encode_text("hello")) > 0


def test_the_content_format_is_read_from_the_template(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "parts.jinja"
    path.write_text("{% for m in messages %}{% for p in m.content %}[{{ p.text }}]{% endfor %}{% endfor %}")
    tokenizer = ModelTokenizer.load(str(model), str(path))
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert tokenizer.render({"messages": [{"role": "user", "content": parts}]}).text == "[a][b]"


def test_server_defaults_reach_the_template(model: Path, golden_template: Path) -> None:
    defaults = {"enable_thinking": False}
    tokenizer = ModelTokenizer.load(str(model), str(golden_template), default_chat_template_kwargs=defaults)
    assert tokenizer.render(HELLO).text.endswith("assistant\nNOTHINK")


def configured(path: Path, **changes: Any) -> Any:
    config = json.loads((path / "tokenizer_config.json").read_text())
    config.update(changes)
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return load_hf_tokenizer(str(path)).tokenizer


def test_llama_class_tokenizers_add_bos_unless_their_config_says_no(model: Path) -> None:
    flags: dict[str, Any] = {"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<|endoftext|>"}
    with_bos = configured(model, **flags)
    assert with_bos.encode("") == [0]
    assert configured(model, **flags, add_bos_token=False).encode("") == []


def test_a_class_does_not_replace_the_files_pre_tokenizer(model: Path, hf: Any) -> None:
    flags: dict[str, Any] = {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": False}
    tokenizer = configured(model, **flags, bos_token="<|endoftext|>")
    assert type(tokenizer._tokenizer.pre_tokenizer).__name__ == "ByteLevel"
    text = "hello there, x = 1\n"
    assert tokenizer.encode(text, add_special_tokens=False) == hf.encode(text, add_special_tokens=False)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_nothing_here_uses_the_working_directory(tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tokenizer_dir.parent)
    load: Callable[[str], Any] = load_hf_tokenizer
    assert load("tokenizer").files.directory == Path("tokenizer")
