from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sgl_router.tokenization import (
    ModelTokenizer,
    TokenizeBadRequest,
    Unrenderable,
    UnrenderableReason,
    detokenize_request,
    tokenize_request,
)
from sgl_router.tokenization.model_files import ModelFacts

USER = {"role": "user", "content": "hi"}


async def test_a_prompt(golden: ModelTokenizer, hf: Any) -> None:
    answer = await tokenize_request(golden, {"prompt": "hello there"})
    ids = hf.encode("hello there")
    assert answer == {"tokens": ids, "count": len(ids), "max_model_len": 4096}
    assert all(type(i) is int for i in answer["tokens"])


async def test_a_batch_of_prompts(golden: ModelTokenizer, hf: Any) -> None:
    answer = await tokenize_request(golden, {"prompt": ["hello", ""], "model": "m"})
    assert answer["tokens"] == [hf.encode("hello"), []]
    assert answer["count"] == [len(hf.encode("hello")), 0]
    assert await tokenize_request(golden, {"prompt": []}) == {"tokens": [], "count": [], "max_model_len": 4096}


async def test_special_tokens_are_added_unless_refused(build: Any, bos_hf: Any) -> None:
    tokenizer = build(None, tokenizer=bos_hf)
    assert (await tokenize_request(tokenizer, {"prompt": "x"}))["tokens"][0] == 0
    assert (await tokenize_request(tokenizer, {"prompt": "x", "add_special_tokens": False}))["tokens"][0] != 0


async def test_messages_are_rendered_as_for_a_completion(golden: ModelTokenizer) -> None:
    body = {"messages": [USER, {"role": "assistant", "content": "partial"}], "add_special_tokens": True}
    answer = await tokenize_request(golden, body)
    assert answer["tokens"] == (await golden.encode_chat(body)).tolist()
    assert answer["count"] == len(answer["tokens"])


async def test_messages_can_be_rendered_as_given(golden: ModelTokenizer) -> None:
    body = {"messages": [USER, {"role": "assistant", "content": "done"}], "add_generation_prompt": False}
    answer = await tokenize_request(golden, body)
    text = golden.decode(answer["tokens"], skip_special_tokens=False)
    assert text == "<|im_start|>userhi<|im_end|>\n<|im_start|>assistantdone<|im_end|>\n"


async def test_an_unknown_context_length_is_minus_one(build: Any, hf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf, "model_max_length", int(1e30))
    assert (await tokenize_request(build(None), {"prompt": "x"}))["max_model_len"] == -1


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": None, "messages": None}, "prompt"),
        ({"prompt": "x", "messages": [USER]}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": ["a", 3]}, "prompt[1]"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"prompt": "x", "add_special_tokens": "maybe"}, "add_special_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "bogus"}]}, "messages[0].role"),
        ({"messages": [USER], "tool_choice": "bogus"}, "tool_choice"),
    ],
)
async def test_malformed_bodies_name_the_field(golden: ModelTokenizer, body: dict[str, Any], param: str) -> None:
    with pytest.raises(TokenizeBadRequest) as caught:
        await tokenize_request(golden, body)
    assert caught.value.param == param
    assert not caught.value.message.startswith(param)
    assert isinstance(caught.value, ValueError)


async def test_a_template_that_refuses_is_a_bad_request(build: Any) -> None:
    with pytest.raises(TokenizeBadRequest, match="roles must alternate"):
        await tokenize_request(build("{{ raise_exception('roles must alternate') }}"), {"messages": [USER]})


async def test_what_only_the_engine_can_encode_stays_unrenderable(golden: ModelTokenizer, build: Any) -> None:
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
    with pytest.raises(Unrenderable) as caught:
        await tokenize_request(golden, {"messages": [image]})
    assert caught.value.reason is UnrenderableReason.MEDIA
    coded = build("x", facts=ModelFacts(code_encoder="dsv4", multimodal=False, context_length=None))
    with pytest.raises(Unrenderable) as caught:
        await tokenize_request(coded, {"messages": [USER]})
    assert caught.value.reason is UnrenderableReason.CODE_ENCODER


async def test_detokenize(golden: ModelTokenizer, hf: Any) -> None:
    ids = hf.encode("<|im_start|>hello there")
    assert await detokenize_request(golden, {"tokens": ids}) == {"text": "hello there"}
    assert await detokenize_request(golden, {"tokens": ids, "skip_special_tokens": False}) == {
        "text": "<|im_start|>hello there"
    }
    assert await detokenize_request(golden, {"tokens": [ids, []]}) == {"text": ["hello there", ""]}
    assert await detokenize_request(golden, {"tokens": []}) == {"text": ""}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "tokens"),
        ({"tokens": "x"}, "tokens"),
        ({"tokens": ["x"]}, "tokens[0]"),
        ({"tokens": [1, True]}, "tokens[1]"),
        ({"tokens": [1, -1]}, "tokens[1]"),
        ({"tokens": [1, [2]]}, "tokens[1]"),
        ({"tokens": [[1], 2]}, "tokens[1]"),
        ({"tokens": [[1, "x"]]}, "tokens[0][1]"),
        ({"tokens": [1 << 40]}, "tokens[0]"),
        ({"tokens": [1, 4_000_000_000]}, "tokens[1]"),
        ({"tokens": [[1], [2, 4_000_000_000]]}, "tokens[1][1]"),
        ({"tokens": [1], "skip_special_tokens": "maybe"}, "skip_special_tokens"),
    ],
)
async def test_malformed_tokens_name_the_field(golden: ModelTokenizer, body: dict[str, Any], param: str) -> None:
    with pytest.raises(TokenizeBadRequest) as caught:
        await detokenize_request(golden, body)
    assert caught.value.param == param


async def test_long_sequences_stay_arrays(golden: ModelTokenizer) -> None:
    answer = await tokenize_request(golden, {"prompt": "word " * 20_000})
    tokens = answer["tokens"]
    assert isinstance(tokens, np.ndarray)
    assert len(tokens) == answer["count"]
    wide = tokens.astype(np.int64)
    assert await detokenize_request(golden, {"tokens": wide}) == {"text": "word " * 20_000}
    assert await detokenize_request(golden, {"tokens": tokens.tolist()}) == {"text": "word " * 20_000}
    wide[77] = -1
    with pytest.raises(TokenizeBadRequest) as caught:
        await detokenize_request(golden, {"tokens": wide})
    assert caught.value.param == "tokens[77]"


async def test_text_there_is_no_memory_for_is_refused(golden: ModelTokenizer) -> None:
    most = golden._encoder.most_chars
    text = "x" * (most + 1)
    for body, param in (({"prompt": text}, "prompt"), ({"prompt": ["a", text]}, "prompt[1]")):
        with pytest.raises(TokenizeBadRequest) as caught:
            await tokenize_request(golden, body)
        assert (caught.value.param, f"more than {most} characters" in caught.value.message) == (param, True)


def test_long_sequences_are_decoded_alike(golden: ModelTokenizer) -> None:
    ids = golden.encode("<|im_start|>hello , it 's  a test .\n" * 400)
    assert len(ids) > 2_048
    for skip in (True, False):
        assert golden.decode(ids, skip) == golden._tokenizer.decode(ids.tolist(), skip_special_tokens=skip)
    assert golden._decodes_in_batches


async def test_large_work_leaves_the_event_loop(build: Any, executor: Any) -> None:
    tokenizer = build(None, executor=executor)
    await tokenize_request(tokenizer, {"prompt": ["x"] * 10})
    await detokenize_request(tokenizer, {"tokens": [[1, 2]] * 10})
    assert executor.submitted == 0
    assert len((await tokenize_request(tokenizer, {"prompt": ["x"] * 1000}))["count"]) == 1000
    assert executor.submitted == 1
    await tokenize_request(tokenizer, {"prompt": "word " * 20_000})
    assert executor.submitted == 2
    await detokenize_request(tokenizer, {"tokens": [5] * 10_000})
    assert executor.submitted == 3
    with pytest.raises(TokenizeBadRequest) as caught:
        await detokenize_request(tokenizer, {"tokens": [[5]] * 5_000 + [["x"]]})
    assert caught.value.param == "tokens[5000][0]"
