"""The embedded tokenizer is what its script makes, and renders chats."""

from __future__ import annotations

import json
from pathlib import Path

from sgl_router.lab.mock_worker import EMBEDDED_TOKENIZER_PATH
from sgl_router.lab.mock_worker.make_tokenizer import SPECIAL_TOKENS, VOCABULARY_SIZE, write
from sgl_router.tokenization import ModelTokenizer

EMBEDDED = Path(EMBEDDED_TOKENIZER_PATH)


def test_the_script_reproduces_the_shipped_files(tmp_path: Path) -> None:
    write(tmp_path)
    shipped = json.loads((EMBEDDED / "tokenizer.json").read_text())
    rebuilt = json.loads((tmp_path / "tokenizer.json").read_text())
    assert rebuilt["model"]["vocab"] == shipped["model"]["vocab"]
    assert rebuilt["model"]["merges"] == shipped["model"]["merges"]
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / name).read_text() == (EMBEDDED / name).read_text()


def test_it_is_small() -> None:
    assert (EMBEDDED / "tokenizer.json").stat().st_size < 100_000
    assert len(json.loads((EMBEDDED / "tokenizer.json").read_text())["model"]["vocab"]) == VOCABULARY_SIZE


async def test_every_text_survives(tokenizer: ModelTokenizer) -> None:
    text = 'Zażółć 😀 {"a": [1, 2]}\n\tdef f(): return None\u2028 '
    ids = await tokenizer.encode_text(text, False)
    assert tokenizer.decode(ids.tolist()) == text


async def test_chats_are_rendered_as_chatml(tokenizer: ModelTokenizer) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    ids = (await tokenizer.encode_chat({"messages": messages})).tolist()
    assert tokenizer.decode(ids, False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids[0] == SPECIAL_TOKENS.index("<|im_start|>")


async def test_a_conversation_extends_its_own_prefix(tokenizer: ModelTokenizer) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    first = (await tokenizer.encode_chat({"messages": messages})).tolist()
    messages += [{"role": "assistant", "content": "The cache."}, {"role": "user", "content": "Why?"}]
    assert (await tokenizer.encode_chat({"messages": messages})).tolist()[: len(first)] == first


async def test_tools_and_calls_are_rendered(tokenizer: ModelTokenizer) -> None:
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
    call = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}
    body = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "sunny"},
        ],
        "tools": [tool],
    }
    text = tokenizer.decode((await tokenizer.encode_chat(body)).tolist(), False)
    assert text.count("Be brief.") == 1
    assert "get_weather" in text
    assert "Rome" in text
    assert "sunny" in text
