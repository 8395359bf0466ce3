from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sgl_router.tokenization import (
    InvalidTokenIds,
    ModelTokenizer,
    RenderedPrompt,
    Unrenderable,
    UnrenderableReason,
)
from sgl_router.tokenization.encoders import HfEncoder, TokenIds
from sgl_router.tokenization.model_files import ModelFacts

FIXTURES = Path(__file__).parent.parent / "fixtures"
GOLDEN: dict[str, Any] = json.loads((FIXTURES / "chat_tokens_0.5.23.json").read_text())
RULES: dict[str, Any] = json.loads((FIXTURES / "chat_tokens_rules_0.5.23.json").read_text())
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HELLO = {"messages": [{"role": "user", "content": "hello there"}]}

Build = Callable[..., ModelTokenizer]


@pytest.mark.parametrize("name", [name for name, case in GOLDEN.items() if isinstance(case["token_ids"], list)])
async def test_the_live_servers_ids_are_reproduced(golden: ModelTokenizer, name: str) -> None:
    ids = await golden.encode_chat(GOLDEN[name]["body"])
    assert ids.tolist() == GOLDEN[name]["token_ids"]
    assert ids.dtype == np.uint32
    assert ids.ndim == 1
    assert ids.flags.c_contiguous


async def test_the_case_the_server_refused_to_generate_renders_its_named_tool_alone(
    golden: ModelTokenizer, hf: Any
) -> None:
    """The server ran without a grammar backend, so this rendering is the template read by hand."""
    assert not isinstance(GOLDEN["tools named"]["token_ids"], list)
    expected = (
        '<|im_start|>system\nTOOLS {"type": "function", "function": {"name": "put", "strict": false, '
        '"description": null, "parameters": null}, "defer_loading": null}\n<|im_end|>\n'
        "<|im_start|>userhello there<|im_end|>\n<|im_start|>assistant\n"
    )
    body = GOLDEN["tools named"]["body"]
    assert golden.render(body).text == expected
    assert (await golden.encode_chat(body)).tolist() == hf.encode(expected)
    # The tool's own text has the same ids as in the capture that lists both tools.
    piece = hf.encode('{"type": "function", "function": {"name": "put')
    both = GOLDEN["tools"]["token_ids"]
    assert any(both[i : i + len(piece)] == piece for i in range(len(both)))


@pytest.mark.parametrize("index", range(len(RULES["cases"])))
async def test_generated_bodies_render_as_the_engines_own_request_code_renders_them(
    build: Build, hf: Any, index: int
) -> None:
    case = RULES["cases"][index]
    tokenizer = build(RULES["templates"][case["template"]], defaults=case["defaults"])
    before = json.dumps(case["body"])
    encode = tokenizer.encode_chat if case["endpoint"] == "chat" else tokenizer.encode_chat_for_tokenize
    if "refused" in case:
        with pytest.raises(Unrenderable):
            await encode(case["body"])
    else:
        assert hf.decode((await encode(case["body"])).tolist()) == case["text"]
    assert json.dumps(case["body"]) == before


async def test_continued_prefix_is_encoded_on_its_own_and_loses_its_bos(build: Build, bos_hf: Any) -> None:
    tokenizer = build(CHATML, tokenizer=bos_hf)
    body = {
        "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "partial ans"}],
        "continue_final_message": True,
    }
    ids = (await tokenizer.encode_chat(body)).tolist()
    prompt = bos_hf.encode("<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)
    assert ids == prompt + bos_hf.encode("partial ans", add_special_tokens=False)


async def test_a_bos_the_tokenizer_would_add_is_left_to_the_template(build: Build, bos_hf: Any) -> None:
    tokenizer = build("{{ bos_token }}" + CHATML, tokenizer=bos_hf)
    ids = (await tokenizer.encode_chat(HELLO)).tolist()
    assert ids[0] == 0
    assert ids.count(0) == 1
    assert (await tokenizer.encode_text("hello")).tolist()[0] == 0
    assert (await tokenizer.encode_text("hello", add_special_tokens=False)).tolist()[0] != 0


async def test_multimodal_models_with_a_bos_encode_their_own_decoding_again(build: Build, bos_hf: Any) -> None:
    facts = ModelFacts(code_encoder=None, multimodal=True, context_length=None)
    tokenizer = build("{{ bos_token }}" + CHATML, tokenizer=bos_hf, facts=facts)
    ids = (await tokenizer.encode_chat(HELLO)).tolist()
    assert ids[:2] == [0, 0]
    # The tokenize endpoint reports the prompt before that second pass.
    assert (await tokenizer.encode_chat_for_tokenize(HELLO)).tolist() == ids[1:]


async def test_input_ids_stand_in_for_the_rendered_messages(build: Build, hf: Any) -> None:
    tokenizer = build(None)
    last = len(hf) - 1
    ids = await tokenizer.encode_chat({**HELLO, "input_ids": [5, 6, last, 7.0, "8"]})
    assert ids.tolist() == [5, 6, last, 7, 8]
    assert ids.dtype == np.uint32
    assert (await tokenizer.encode_chat_for_tokenize({**HELLO, "input_ids": [5]})).tolist() == [5]


@pytest.mark.parametrize(
    ("bad", "param"),
    [
        ("5", "input_ids"),
        ({"a": 1}, "input_ids"),
        ([1, None], "input_ids[1]"),
        ([1, True], "input_ids[1]"),
        ([1.5], "input_ids[0]"),
        ([[1]], "input_ids[0]"),
        ([3, -1], "input_ids[1]"),
        ([4_000_000_000], "input_ids[0]"),
        ([1 << 32], "input_ids[0]"),
        ([0, 10**400], "input_ids[1]"),
    ],
)
async def test_input_ids_that_are_no_ids_are_refused(golden: ModelTokenizer, bad: Any, param: str) -> None:
    body = {**HELLO, "input_ids": bad}
    for take in (golden.encode_chat, golden.prompt, golden.check_ids):
        with pytest.raises(InvalidTokenIds) as caught:
            await take(body)
        assert caught.value.reason is UnrenderableReason.INVALID_MESSAGES
        assert caught.value.param == param
        assert len(caught.value.message) < 200


@pytest.mark.parametrize(("stated", "bound"), [(40_000, 40_000), (None, None)])
async def test_the_bound_of_ids_is_the_models_own(build: Build, hf: Any, stated: int | None, bound: int | None) -> None:
    """Of a model whose config is not there, embeddings may be padded: what an engine takes is not refused."""
    facts = ModelFacts(code_encoder=None, multimodal=False, context_length=None, vocab_size=stated)
    tokenizer = build(CHATML, facts=facts)
    size = bound or 2 * len(hf)
    assert tokenizer.vocab_size == size
    await tokenizer.check_ids({**HELLO, "input_ids": [0, size - 1]})
    with pytest.raises(InvalidTokenIds, match=f"expected 0 to {size - 1}"):
        await tokenizer.check_ids({**HELLO, "input_ids": [size]})


async def test_many_ids_are_checked_off_the_event_loop(build: Build, executor: Any) -> None:
    tokenizer = build(None, executor=executor)
    await tokenizer.check_ids({**HELLO, "input_ids": [1] * 10})
    assert executor.submitted == 0
    with pytest.raises(InvalidTokenIds):
        await tokenizer.check_ids({**HELLO, "input_ids": [1] * 1000 + [-1]})
    assert executor.submitted == 1


async def test_no_template_is_a_reason_of_its_own(build: Build) -> None:
    with pytest.raises(Unrenderable) as caught:
        await build(None).encode_chat(HELLO)
    assert caught.value.reason is UnrenderableReason.NO_TEMPLATE


async def test_models_encoded_by_code_are_not_rendered(build: Build) -> None:
    facts = ModelFacts(code_encoder="dsv4", multimodal=False, context_length=None)
    with pytest.raises(Unrenderable, match="dsv4") as caught:
        await build(CHATML, facts=facts).encode_chat(HELLO)
    assert caught.value.reason is UnrenderableReason.CODE_ENCODER


async def test_a_template_that_raises_is_a_template_error(build: Build) -> None:
    tokenizer = build("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(Unrenderable, match="roles must alternate") as caught:
        await tokenizer.encode_chat(HELLO)
    assert caught.value.reason is UnrenderableReason.TEMPLATE_ERROR


async def test_a_template_that_refuses_wrapped_tools_gets_the_bare_functions(build: Build) -> None:
    tokenizer = build("{% for t in tools %}{{ t['name'] if 'name' in t else raise_exception('flat') }}{% endfor %}")
    body = {**HELLO, "tools": [{"type": "function", "function": {"name": "get"}}]}
    assert tokenizer.render(body).text == "get"


async def test_lone_surrogates_are_refused_by_name(build: Build) -> None:
    with pytest.raises(Unrenderable, match="Unicode"):
        await build(CHATML).encode_chat({"messages": [{"role": "user", "content": "\ud800"}]})


async def test_deep_nesting_is_refused(build: Build) -> None:
    schema: dict[str, Any] = {"type": "int"}
    for _ in range(100_000):
        schema = {"items": schema}
    body = {**HELLO, "tools": [{"type": "function", "function": {"name": "get", "parameters": schema}}]}
    with pytest.raises(Unrenderable) as caught:
        await build(CHATML).encode_chat(body)
    assert caught.value.reason is UnrenderableReason.INVALID_MESSAGES
    while schema:  # unlinked step by step: freeing it at once would recurse as deeply
        schema = schema.pop("items", {})


async def test_rendering_and_encoding_are_separate_steps(golden: ModelTokenizer) -> None:
    rendered = golden.render(GOLDEN["continue_final_message"]["body"])
    assert rendered == RenderedPrompt(
        text="<|im_start|>userhello there<|im_end|>\n<|im_start|>assistant\n",
        add_special_tokens=True,
        assistant_prefix="partial ans",
    )
    assert golden.encode_rendered(rendered).tolist() == GOLDEN["continue_final_message"]["token_ids"]


async def test_short_prompts_stay_on_the_loop_and_long_ones_go_to_the_executor(
    build: Build, hf: Any, executor: Any
) -> None:
    encoder = HfEncoder(hf)
    tokenizer = build(CHATML, encoder=encoder, executor=executor)
    await tokenizer.encode_chat(HELLO)
    await tokenizer.encode_text("x" * encoder.inline_chars)
    assert executor.submitted == 0
    long = "word " * encoder.inline_chars
    expected = hf.encode(long)
    assert (await tokenizer.encode_text(long)).tolist() == expected
    assert executor.submitted == 1
    await tokenizer.encode_chat({"messages": [{"role": "user", "content": long[: 2 * encoder.inline_chars]}]})
    assert executor.submitted == 2
    prefix = {"role": "assistant", "content": long[: 2 * encoder.inline_chars]}
    await tokenizer.encode_chat({"messages": [HELLO["messages"][0], prefix], "continue_final_message": True})
    assert executor.submitted == 3


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": "hi"}] * 1000},
        {"messages": [{"role": "user", "content": "x" * 100_000}]},
        {**HELLO, "input_ids": [1] * 1000},
    ],
    ids=["many messages", "one long message", "many ids"],
)
async def test_large_bodies_are_normalised_and_rendered_off_the_loop(
    build: Build, executor: Any, monkeypatch: pytest.MonkeyPatch, body: dict[str, Any]
) -> None:
    tokenizer = build(CHATML, executor=executor)
    submitted_at_render: list[int] = []
    render = tokenizer._render

    def spy(*args: Any) -> RenderedPrompt:
        submitted_at_render.append(executor.submitted)
        return render(*args)

    monkeypatch.setattr(tokenizer, "_render", spy)
    await tokenizer.encode_chat(body)
    assert submitted_at_render == [1]
    assert executor.submitted == 1


async def test_off_loop_failures_reach_the_caller(build: Build, executor: Any) -> None:
    tokenizer = build("{{ raise_exception('no') }}", executor=executor)
    with pytest.raises(Unrenderable, match="no"):
        await tokenizer.encode_chat({"messages": [{"role": "user", "content": "x" * 100_000}]})
    assert executor.submitted == 1


async def test_the_default_executor_works_in_threads_of_its_own(build: Build, hf: Any) -> None:
    seen: set[str] = set()

    class Encoder(HfEncoder):
        def encode(self, text: str, add_special_tokens: bool) -> TokenIds:
            seen.add(threading.current_thread().name)
            return super().encode(text, add_special_tokens)

    tokenizer = build(CHATML, encoder=Encoder(hf))
    seen.clear()
    await tokenizer.encode_text("word " * 5000)
    tokenizer.close()
    assert len(seen) == 1
    assert seen.pop().startswith("tokenize")


def test_encoding_is_safe_from_many_threads(golden: ModelTokenizer, hf: Any) -> None:
    texts = [f"text {i} " * (i * 7 + 1) for i in range(32)]
    expected = [hf.encode(text) for text in texts]
    rendered = [RenderedPrompt(text, True) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert [ids.tolist() for ids in pool.map(golden.encode_rendered, rendered)] == expected


async def test_decoding_inverts_encoding_and_skips_specials_on_request(golden: ModelTokenizer) -> None:
    ids = (await golden.encode_text("<|im_start|>hello there<|im_end|>")).tolist()
    assert golden.decode(ids) == "hello there"
    assert golden.decode(ids, skip_special_tokens=False) == "<|im_start|>hello there<|im_end|>"
    assert golden.decode(np.array(ids * 2000, dtype=np.uint32)) == "hello there" * 2000


def test_context_length_comes_from_the_tokenizer_else_from_the_model(build: Build, hf: Any, golden: Any) -> None:
    assert golden.max_model_len == 4096

    class Unlimited:
        model_max_length = int(1e30)
        special_tokens_map: dict[str, str] = {}  # noqa: RUF012
        bos_token_id = None

    facts = ModelFacts(code_encoder=None, multimodal=False, context_length=777)
    assert build(CHATML, tokenizer=Unlimited(), encoder=HfEncoder(hf), facts=facts).max_model_len == 777
    assert build(CHATML, tokenizer=Unlimited(), encoder=HfEncoder(hf)).max_model_len is None


def test_text_of_one_byte_characters_may_be_twice_as_long_on_the_loop(build: Build) -> None:
    tokenizer = build(CHATML)
    limit = tokenizer.inline_chars
    assert tokenizer.is_short(["x" * limit, "y" * limit])
    assert not tokenizer.is_short(["x" * limit, "y" * limit], "z")
    assert tokenizer.is_short(["é" * limit])
    assert not tokenizer.is_short(["é" * limit], "x")
