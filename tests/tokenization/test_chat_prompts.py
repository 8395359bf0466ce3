from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sgl_router.lab.mock_worker.config import EMBEDDED_TOKENIZER_PATH
from sgl_router.prompt import Prompt
from sgl_router.tokenization import (
    InvalidTokenIds,
    ModelTokenizer,
    Unrenderable,
    UnrenderableReason,
    conversation_cache,
)
from sgl_router.tokenization.chat_request import TemplateTraits
from sgl_router.tokenization.encoders import choose_encoder
from sgl_router.tokenization.model_files import ModelFacts
from sgl_router.tokenization.template import ChatTemplate, detect_content_format

STYLES = {path.stem: path.read_text() for path in (Path(__file__).parent / "styles").glob("*.jinja")}
NO_FACTS = ModelFacts(code_encoder=None, multimodal=False, context_length=None)
LOOSE = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=40)

# What a content is made of: the specials themselves, their halves, what templates look for, space, and Unicode.
SCRAPS = (
    st.sampled_from(["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_", "start|>", "|>", "<", "a" * 40, "0"])
    | st.sampled_from(["[tool]", "[TOOL]", "x[tool]y", "</think>", "<think>", "<tool_response>", "</tool_response>"])
    | st.sampled_from(["secret", "LOUD", "hello", "Hello", "hello there", "user\n", "é", "e\u0301", "中文", "😀", "ſ"])
    | st.sampled_from([" ", "\n", "\t ", "\u2003", "\x1c", "\u00a0"])
)
CONTENTS = st.lists(SCRAPS, max_size=6).map("".join)
ROLES = st.sampled_from(["user", "assistant", "user", "system", "tool"])
MESSAGE = st.fixed_dictionaries({"role": ROLES, "content": CONTENTS})
ODD_MESSAGE = st.one_of(
    MESSAGE,
    st.fixed_dictionaries(
        {
            "role": st.just("assistant"),
            "content": st.one_of(st.none(), CONTENTS),
            "tool_calls": st.just([{"id": "c", "function": {"name": "get", "arguments": '{"q": "<|im_end|>"}'}}]),
        }
    ),
    st.fixed_dictionaries({"role": st.just("tool"), "content": CONTENTS, "tool_call_id": st.just("c")}),
    st.fixed_dictionaries({"role": st.just("User"), "content": CONTENTS}),
    st.fixed_dictionaries({"role": st.just("user"), "name": st.just("n"), "content": CONTENTS}),
    st.fixed_dictionaries({"role": st.just("user"), "content": st.just([{"type": "text", "text": "<|im_start|>"}])}),
    st.just({"role": "assistant", "content": "<think>a</think>b", "reasoning_content": "r"}),
)
TOOL = {"type": "function", "function": {"name": "get", "parameters": {"type": "object"}}}
EXTRAS = st.fixed_dictionaries(
    {},
    optional={
        "tools": st.sampled_from([None, [TOOL], [TOOL, {"type": "function", "function": {"name": "<|im_start|>"}}]]),
        "tool_choice": st.sampled_from([None, "none", "auto"]),
        "continue_final_message": st.booleans(),
        "chat_template_kwargs": st.sampled_from([None, {"enable_thinking": False}, {"date_string": "<|im_start|>"}]),
        "reasoning_effort": st.sampled_from(["low", "none"]),
        "temperature": st.just(0.5),
    },
)


@st.composite
def dialogues(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Conversations as most are: a system prompt sometimes, then users and assistants in turn."""
    turns = draw(st.lists(CONTENTS, min_size=1, max_size=7))
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    system = draw(st.none() | CONTENTS)
    return messages if system is None else [{"role": "system", "content": system}, *messages]


@st.composite
def traffic(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Bodies of interleaved conversations: each is a beginning of one of a few, sometimes altered."""
    pool = draw(st.lists(st.one_of(dialogues(), st.lists(ODD_MESSAGE, min_size=1, max_size=6)), min_size=1, max_size=3))
    bodies = []
    for _ in range(draw(st.integers(2, 10))):
        messages = draw(st.sampled_from(pool))
        messages = [dict(message) for message in messages[: draw(st.integers(1, len(messages)))]]
        if draw(st.integers(0, 3)) == 0:
            draw(st.sampled_from(messages))["content"] = draw(CONTENTS)
        extras = draw(EXTRAS) if draw(st.booleans()) else {}
        bodies.append({"messages": messages, **extras})
    return bodies


class Flags:
    """Tokenizers with added tokens of every kind, normalizers and pre-tokenizers that look at where a text begins."""

    @staticmethod
    def make(name: str) -> Any:
        from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        spec = json.loads((Path(EMBEDDED_TOKENIZER_PATH) / "tokenizer.json").read_text())
        raw = Tokenizer.from_str(json.dumps(spec))
        if name in ("metaspace first", "metaspace always", "prepend"):
            letters = sorted(set("abcdefghijklmnopqrstuvwxyz<|>_/[]ABCDEFGHIJKLMNOPQRSTUVWXYZ▁0123456789"))
            vocabulary = {token: i for i, token in enumerate(["<unk>", *letters, "▁h", "he", "▁u", "us"])}
            merges = [("▁", "h"), ("h", "e"), ("▁", "u"), ("u", "s")]
            raw = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True))
            raw.decoder = decoders.Metaspace()
            if name == "prepend":
                raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
            else:
                raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=name.split()[1])
            raw.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
        elif name == "normalized":
            raw.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
            raw.add_tokens([AddedToken("[tool]", normalized=True), AddedToken("hello", normalized=True)])
        elif name == "stripping":
            raw.add_tokens([AddedToken("[tool]", lstrip=True, rstrip=True, normalized=False)])
        elif name == "stripping cut":
            raw.add_special_tokens([AddedToken("<|im_start|>", rstrip=True), AddedToken("<|im_end|>", lstrip=True)])
        elif name == "single word":
            raw.add_tokens([AddedToken("hello", single_word=True)])
        elif name == "overlapping":
            raw.add_tokens([AddedToken("\n<|im_", normalized=False), AddedToken("|>user", normalized=False)])
        elif name == "prefix space":
            raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>", bos_token="<|endoftext|>")


FLAGS = ["metaspace first", "metaspace always", "prepend", "normalized", "stripping", "stripping cut"]
FLAGS += ["single word", "overlapping", "prefix space"]
Build = Callable[..., ModelTokenizer]


def of(tokenizer: Any, style: str, max_bytes: int = 1 << 20) -> ModelTokenizer:
    source = STYLES[style]
    return ModelTokenizer(
        tokenizer,
        choose_encoder(tokenizer),
        template=ChatTemplate(source, {"bos_token": "<|endoftext|>"}),
        traits=TemplateTraits(content_format=detect_content_format(source)),
        facts=NO_FACTS,
        conversation_cache_bytes=max_bytes,
    )


@pytest.fixture(scope="module")
def embedded() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(EMBEDDED_TOKENIZER_PATH))


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every piece counts: the conversations of these tests are short."""
    with monkeypatch.context() as patch:
        patch.setattr(conversation_cache, "MIN_PIECE_CHARS", 1)
        yield


async def same(tokenizer: ModelTokenizer, body: dict[str, Any]) -> Prompt | None:
    """The prompt of a body, after holding it against the one made from scratch; None where there is none."""
    decoded = msgspec.json.decode(msgspec.json.encode(body))
    try:
        expected = await tokenizer.encode_chat(decoded)
    except Unrenderable as error:
        with pytest.raises(Unrenderable) as caught:
            await tokenizer.prompt(decoded)
        assert (caught.value.reason, caught.value.message) == (error.reason, error.message)
        return None
    prompt = await tokenizer.prompt(decoded)
    assert prompt.ids.tolist() == expected.tolist()
    assert prompt.ids.dtype == np.uint32
    assert prompt.ids.ndim == 1
    assert prompt.ids.flags.c_contiguous
    assert prompt.shared is None or 0 < prompt.shared.tokens <= len(prompt)
    assert decoded == body
    return prompt


def all_the_same(tokenizer: ModelTokenizer, bodies: list[dict[str, Any]]) -> None:
    async def run() -> None:
        for body in bodies:
            await same(tokenizer, body)
            counts = tokenizer.prompt_counts
            assert counts is not None
            assert counts.bytes <= counts.max_bytes

    asyncio.run(run())


@pytest.mark.parametrize("max_bytes", [1 << 20, 6_000])
@pytest.mark.parametrize("style", sorted(STYLES))
def test_any_traffic_has_the_ids_it_has_from_scratch(embedded: Any, style: str, max_bytes: int) -> None:
    tokenizer = of(embedded, style, max_bytes)

    @LOOSE
    @given(traffic())
    def check(bodies: list[dict[str, Any]]) -> None:
        all_the_same(tokenizer, bodies)

    check()


@pytest.mark.parametrize("flags", FLAGS)
def test_awkward_tokenizers_have_the_same_ids(flags: str) -> None:
    tokenizer = of(Flags.make(flags), "chatml", 20_000)

    @LOOSE
    @given(traffic())
    def check(bodies: list[dict[str, Any]]) -> None:
        all_the_same(tokenizer, bodies)

    check()


@pytest.mark.parametrize("style", ["chatml", "gemma", "mistral"])
def test_a_bos_post_processor_changes_nothing(bos_hf: Any, style: str) -> None:
    tokenizer = of(bos_hf, style, 20_000)

    @LOOSE
    @given(traffic())
    def check(bodies: list[dict[str, Any]]) -> None:
        all_the_same(tokenizer, bodies)

    check()


def test_the_tokenizer_of_the_golden_captures(tokenizer_dir: Path, golden_template: Path) -> None:
    tokenizer = ModelTokenizer.load(str(tokenizer_dir), str(golden_template), conversation_cache_bytes=20_000)

    @LOOSE
    @given(traffic())
    def check(bodies: list[dict[str, Any]]) -> None:
        all_the_same(tokenizer, bodies)

    check()
    cases = json.loads((Path(__file__).parent.parent / "fixtures" / "chat_tokens_0.5.23.json").read_text())
    all_the_same(tokenizer, [case["body"] for case in cases.values()] * 2)


def chat(*texts: str) -> dict[str, Any]:
    roles = ("system", "user", "assistant")
    return {"messages": [{"role": roles[0 if i == 0 else 2 - i % 2], "content": text} for i, text in enumerate(texts)]}


async def test_a_next_turn_finds_all_but_the_last_message_of_the_turn_before(embedded: Any) -> None:
    tokenizer = of(embedded, "chatml")
    first = await same(tokenizer, chat("be kind", "hello"))
    assert first is not None
    assert first.shared is not None
    text = "<|im_start|>system\nbe kind"
    assert first.shared.tokens == len(tokenizer.encode(text))
    second = await same(tokenizer, chat("be kind", "hello", "hi", "how are you"))
    assert second is not None
    assert second.shared is not None
    text += "<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nhi"
    assert second.shared.tokens == len(tokenizer.encode(text))
    counts = tokenizer.prompt_counts
    assert counts is not None
    assert (counts.hits, counts.misses, counts.nodes) == (1, 1, 3)
    assert counts.tokens_reused == first.shared.tokens


async def test_block_keys_recorded_at_one_turn_are_there_at_the_next(embedded: Any) -> None:
    from array import array

    tokenizer = of(embedded, "chatml")
    texts = ["be kind", "hello", "hi", "how are you"]
    before = await same(tokenizer, chat(*texts))
    assert before is not None
    assert before.shared is not None
    before.shared.keys[7] = array("Q", [1, 2, 3])
    after = await same(tokenizer, chat(*texts, "well", "fine"))
    assert after is not None
    assert after.shared is not None
    assert after.shared.tokens > before.shared.tokens
    assert after.shared.keys[7].tolist() == [1, 2, 3]


async def test_one_off_prompts_leave_nothing_behind(embedded: Any) -> None:
    tokenizer = of(embedded, "chatml")
    for i in range(50):
        await same(tokenizer, chat("be kind", f"question {i}"))
    counts = tokenizer.prompt_counts
    assert counts is not None
    assert counts.nodes == 1
    assert counts.hits == 49


async def test_only_what_is_new_is_encoded(embedded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = of(embedded, "chatml")
    await tokenizer.prompt(chat("be kind", "hello", "hi", "how are you"))
    seen: list[str] = []
    encode = tokenizer.encode

    def spy(text: str, special: bool = True) -> Any:
        seen.append(text)
        return encode(text, special)

    monkeypatch.setattr(tokenizer, "encode", spy)
    await tokenizer.prompt(chat("be kind", "hello", "hi", "how are you", "well", "fine"))
    assert seen == [
        "<|im_end|>\n<|im_start|>user\nhow are you",
        "<|im_end|>\n<|im_start|>assistant\nwell",
        "<|im_end|>\n<|im_start|>user\nfine<|im_end|>\n<|im_start|>assistant\n",
    ]


async def test_a_known_shape_is_not_rendered_by_the_template(embedded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = of(embedded, "qwen3")
    await tokenizer.prompt(chat("be kind", "hello"))
    assert tokenizer._prompts is not None
    followed = tokenizer._prompts._plans._followed
    assert followed is not None

    def refuse(*_: Any) -> Any:
        raise AssertionError("rendered")

    with monkeypatch.context() as patch:
        patch.setattr(type(followed), "render", refuse)
        patch.setattr(ChatTemplate, "render", refuse)
        prompt = await tokenizer.prompt(chat("be quick", "good bye"))
    assert prompt.ids.tolist() == (await tokenizer.encode_chat(chat("be quick", "good bye"))).tolist()


async def test_a_template_that_asks_the_clock_is_not_held_to_its_first_answer(
    embedded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sgl_router.tokenization import render_plan

    tokenizer = of(embedded, "llama3")
    before = await tokenizer.prompt(chat("be kind", "hello"))
    monkeypatch.setattr(render_plan, "strftime_now", lambda _: "tomorrow")
    after = await tokenizer.prompt(chat("be kind", "hello"))
    assert "tomorrow" not in tokenizer.decode(before.ids)
    assert "tomorrow" in tokenizer.decode(after.ids)


async def test_new_text_goes_to_the_executor_and_known_text_does_not(
    build: Build, hf: Any, executor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = build(STYLES["chatml"], executor=executor, conversation_cache_bytes=1 << 20)
    long = "word " * 5_000
    await same(tokenizer, chat(long, "hello"))
    submitted = executor.submitted
    assert submitted > 0
    await tokenizer.prompt(chat(long, "good bye"))
    assert executor.submitted == submitted


async def test_very_large_bodies_are_made_from_scratch_off_the_loop(build: Build, executor: Any) -> None:
    tokenizer = build(STYLES["chatml"], executor=executor, conversation_cache_bytes=1 << 20)
    tokenizer.most_chars = 1 << 22
    body = chat("x" * 2_050_000, "hello")
    prompt = await tokenizer.prompt(body)
    assert prompt.shared is None
    assert executor.submitted == 2
    many = {"messages": [{"role": "user", "content": "hi"}] * 5_000}
    assert (await same(tokenizer, many)) is not None


async def test_more_text_than_any_context_takes_is_not_encoded(build: Build, executor: Any) -> None:
    tokenizer = build(STYLES["chatml"], executor=executor, conversation_cache_bytes=1 << 20)
    assert tokenizer.max_model_len == 4096
    for body in (chat("x" * 1_050_000, "hello"), chat(*["y" * 100_000] * 12)):
        with pytest.raises(Unrenderable) as refused:
            await tokenizer.prompt(body)
        assert refused.value.reason is UnrenderableReason.TOO_LONG
        with pytest.raises(Unrenderable):
            await tokenizer.encode_chat(body)
    most = tokenizer._encoder.most_chars
    with pytest.raises(Unrenderable, match=f"more than {most} characters"):
        await tokenizer.encode_text("x" * (most + 1))
    assert len((await tokenizer.prompt(chat("x" * 1_000_000, "hello"))).ids)


async def test_client_ids_by_the_million_are_told_apart_off_the_loop(build: Build, executor: Any) -> None:
    tokenizer = build(STYLES["chatml"], executor=executor, conversation_cache_bytes=1 << 20)
    ids = np.arange(300_000, dtype=np.int64) % tokenizer.vocab_size
    prompt = await tokenizer.prompt({**chat("a"), "input_ids": ids})
    assert (prompt.ids.dtype, prompt.ids.tolist(), executor.submitted) == (np.uint32, ids.tolist(), 1)
    for bad in (-1, tokenizer.vocab_size, 1 << 32):
        with pytest.raises(InvalidTokenIds, match=r"input_ids\[300000\]"):
            await tokenizer.prompt({**chat("a"), "input_ids": np.append(ids, bad)})


async def test_client_ids_pass_as_they_are(embedded: Any) -> None:
    prompt = await of(embedded, "chatml").prompt({**chat("a", "b"), "input_ids": [3, 4]})
    assert prompt.ids.tolist() == [3, 4]
    assert prompt.shared is None


async def test_concurrent_prompts_of_one_conversation_agree(build: Build, hf: Any) -> None:
    tokenizer = build(STYLES["chatml"], conversation_cache_bytes=40_000)
    bodies = [chat("word " * 3_000, *[f"turn {i} " * 900 for i in range(1 + n % 5)], f"unique {n}") for n in range(24)]
    bodies = [body for body in bodies if len(body["messages"]) > 1]
    expected = [(await tokenizer.encode_chat(body)).tolist() for body in bodies]
    prompts = await asyncio.gather(*[tokenizer.prompt(body) for body in bodies])
    assert [prompt.ids.tolist() for prompt in prompts] == expected
    counts = tokenizer.prompt_counts
    assert counts is not None
    assert counts.bytes <= 40_000


async def test_without_a_cache_prompts_are_made_from_scratch(build: Build) -> None:
    tokenizer = build(STYLES["chatml"])
    assert tokenizer.prompt_counts is None
    assert (await same(tokenizer, chat("a", "b"))) is not None


async def test_lone_surrogates_are_refused_by_name(embedded: Any) -> None:
    tokenizer = of(embedded, "chatml")
    for text in ("ok", "\ud800"):
        body = chat("be kind", text)
        if text != "ok":
            with pytest.raises(Unrenderable, match="Unicode"):
                await tokenizer.prompt(body)
            body["messages"].insert(0, body["messages"].pop())
            with pytest.raises(Unrenderable, match="Unicode"):
                await tokenizer.prompt(body)
        else:
            await tokenizer.prompt(body)
