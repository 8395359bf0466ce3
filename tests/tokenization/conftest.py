"""The fixture tokenizer, and model tokenizers built around it without loading anything twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest

from sgl_router.tokenization import ModelTokenizer
from sgl_router.tokenization.chat_request import TemplateTraits
from sgl_router.tokenization.encoders import Encoder, HfEncoder
from sgl_router.tokenization.loading import load_hf_tokenizer
from sgl_router.tokenization.model_files import ModelFacts
from sgl_router.tokenization.template import ChatTemplate, detect_content_format, detect_low_effort_variable

FIXTURES = Path(__file__).parent.parent / "fixtures"
NO_FACTS = ModelFacts(code_encoder=None, multimodal=False, context_length=None)


class RecordingExecutor(Executor):
    """Runs work where it is submitted and counts it."""

    def __init__(self) -> None:
        self.submitted = 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.submitted += 1
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.fixture(scope="session")
def tokenizer_dir() -> Path:
    return FIXTURES / "tokenizer"


@pytest.fixture(scope="session")
def golden_template() -> Path:
    return FIXTURES / "tokenizer" / "chat_tokens_template.jinja"


@pytest.fixture(scope="session")
def hf(tokenizer_dir: Path) -> Any:
    """The transformers tokenizer: byte-level, no BOS, `<|im_end|>` as EOS."""
    return load_hf_tokenizer(str(tokenizer_dir)).tokenizer


@pytest.fixture(scope="session")
def golden(tokenizer_dir: Path, golden_template: Path) -> ModelTokenizer:
    """Loaded as the engine was started for the golden captures."""
    return ModelTokenizer.load(str(tokenizer_dir), str(golden_template))


@pytest.fixture
def executor() -> RecordingExecutor:
    return RecordingExecutor()


@pytest.fixture(scope="session")
def build(hf: Any) -> Callable[..., ModelTokenizer]:
    """A model tokenizer for a template's source, over the fixture tokenizer unless another is given."""

    def make(
        source: str | None,
        *,
        tokenizer: Any = None,
        encoder: Encoder | None = None,
        defaults: Mapping[str, Any] | None = None,
        facts: ModelFacts = NO_FACTS,
        executor: Executor | None = None,
        conversation_cache_bytes: int = 0,
    ) -> ModelTokenizer:
        tokenizer = hf if tokenizer is None else tokenizer
        special = {k: v for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)}
        traits = TemplateTraits(
            content_format=detect_content_format(source or ""),
            low_effort_variable=detect_low_effort_variable(source or ""),
            default_kwargs=defaults,
        )
        return ModelTokenizer(
            tokenizer,
            encoder or HfEncoder(tokenizer),
            template=None if source is None else ChatTemplate(source, special),
            traits=traits,
            facts=facts,
            executor=executor,
            conversation_cache_bytes=conversation_cache_bytes,
        )

    return make


@pytest.fixture(scope="session")
def bos_dir(tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture tokenizer with a post-processor that puts `<|endoftext|>` (id 0) in front as BOS."""
    path = tmp_path_factory.mktemp("bos") / "model"
    shutil.copytree(tokenizer_dir, path)
    (path / "chat_tokens_template.jinja").unlink()
    spec = json.loads((path / "tokenizer.json").read_text())
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
    }
    (path / "tokenizer.json").write_text(json.dumps(spec))
    config = json.loads((path / "tokenizer_config.json").read_text())
    config["bos_token"] = "<|endoftext|>"
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="session")
def bos_hf(bos_dir: Path) -> Any:
    return load_hf_tokenizer(str(bos_dir)).tokenizer
