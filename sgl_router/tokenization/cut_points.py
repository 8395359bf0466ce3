"""Where a text can be cut so that the ids of its parts, joined, are the ids of the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from sgl_router.tokenization.self_check import corpus

if TYPE_CHECKING:
    from sgl_router.tokenization.template import ChatTemplate

__all__ = ["choose_cut", "clean_tokens", "conversation_cut", "first_bad_cut"]

log = structlog.get_logger(__name__)


class _Spec(msgspec.Struct):
    """What of a tokenizer.json tells how it treats a text's parts."""

    model: dict[str, msgspec.Raw]
    added_tokens: list[dict[str, Any]] = []
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    post_processor: dict[str, Any] | None = None


# Each of them works on one stretch between added tokens at a time. Metaspace's "first" looks at where a stretch
# begins, which is why a part starts with the added token it was cut at, never with text.
_LOCAL_PRE_TOKENIZERS = frozenset(
    {
        "BertPreTokenizer",
        "ByteLevel",
        "CharDelimiterSplit",
        "Digits",
        "Metaspace",
        "Punctuation",
        "Split",
        "UnicodeScripts",
        "Whitespace",
        "WhitespaceSplit",
    }
)
_MODELS = frozenset({"BPE", "Unigram", "WordLevel", "WordPiece"})
_POST_PROCESSORS = frozenset({"BertProcessing", "ByteLevel", "RobertaProcessing", "TemplateProcessing"})


def conversation_cut(tokenizer: Any, encode: Callable[[str], Any], template: ChatTemplate) -> str | None:
    """The token at which this model's rendered conversations can be cut; None if none is known to be safe.

    `encode` is what encodes them, and `tokenizer` the transformers tokenizer that it equals.
    """
    backend = getattr(tokenizer, "_tokenizer", None)
    if backend is None or getattr(tokenizer, "split_special_tokens", False):
        return None
    contents = ["<first>", "<second>", "<third>"]
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    try:
        text = template.render(messages, tools=None, documents=None, add_generation_prompt=True, variables={})
        ends = [(text.index(content), text.index(content) + len(content)) for content in contents]
    except Exception:
        return None
    gaps = [text[end:start] for (_, end), (start, _) in pairwise(ends)]
    spec = msgspec.json.decode(backend.to_str(), type=_Spec)
    fields = {**msgspec.structs.asdict(spec), "model": {k: _scalar(spec.model.get(k)) for k in ("type", "dropout")}}
    cut = choose_cut(clean_tokens(fields), gaps)
    if cut is None:
        log.info("conversations are encoded whole", why="no token between messages is safe to cut at")
        return None
    added = (token.content for token in backend.get_added_tokens_decoder().values())
    texts = corpus(added, backend.get_vocab_size(), lambda ids: str(backend.decode(ids, skip_special_tokens=False)))
    bad = first_bad_cut(encode, cut, (text for text in (*texts, text) if text.isascii() or _is_encodable(text)))
    if bad is not None:
        log.warning("conversations are encoded whole", why=f"cutting at {cut!r} changes the ids of {bad}")
        return None
    return cut


def _scalar(raw: msgspec.Raw | None) -> Any:
    return None if raw is None else msgspec.json.decode(raw)


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def clean_tokens(spec: Mapping[str, Any]) -> list[str]:
    """Added tokens of a tokenizer.json before whose every occurrence a text can be cut; none if in doubt.

    An added token is split off before anything else looks at the text. That holds for an occurrence whatever is
    around it if no other added token can overlap it and none asks for its neighbours (`single_word`).
    """
    model = spec.get("model") or {}
    if model.get("type") not in _MODELS or model.get("dropout"):
        return []
    if not all(kind in _LOCAL_PRE_TOKENIZERS for kind in _kinds(spec.get("pre_tokenizer"), "pretokenizers")):
        return []
    if not all(kind in _POST_PROCESSORS for kind in _kinds(spec.get("post_processor"), "processors")):
        return []
    added = [token for token in spec.get("added_tokens") or () if token.get("content")]
    if any(token.get("single_word") for token in added):
        return []
    normalized_text = spec.get("normalizer") is not None
    texts = [str(token["content"]) for token in added]
    return [
        text
        for token, text in zip(added, texts, strict=True)
        if not (token.get("lstrip") or token.get("rstrip") or (normalized_text and token.get("normalized", True)))
        and text == text.strip()
        and not _overlaps_itself(text)
        and not any(_overlap(text, other) for other in texts if other != text)
    ]


def _kinds(component: Any, members: str) -> Iterable[str]:
    if component is None:
        return ()
    if component.get("type") == "Sequence":
        return chain.from_iterable(_kinds(member, members) for member in component.get(members) or ())
    return (str(component.get("type")),)


def _overlaps_itself(text: str) -> bool:
    return any(text.startswith(text[start:]) for start in range(1, len(text)))


def _overlap(one: str, other: str) -> bool:
    if one in other or other in one:
        return True
    return any(one.endswith(other[:n]) or other.endswith(one[:n]) for n in range(1, min(len(one), len(other))))


def choose_cut(clean: Sequence[str], gaps: Sequence[str]) -> str | None:
    """The token to cut at: in the most gaps between two messages, the last gap above all, and early in it."""
    best: tuple[bool, int, int] | None = None
    chosen = None
    for token in clean:
        covered = sum(token in gap for gap in gaps)
        if covered:
            rank = (token in gaps[-1], covered, -gaps[-1].find(token))
            if best is None or rank > best:
                best, chosen = rank, token
    return chosen


def first_bad_cut(encode: Callable[[str], Any], token: str, texts: Iterable[str]) -> str | None:
    """What disproves the cut in practice: each text is joined to the one before it by the token, and cut there."""
    before = ""
    for text in texts:
        after = token + text
        if list(encode(before + after)) != [*encode(before), *encode(after)]:
            return f"{before[-30:]!r} + {after[:60]!r}"
        before = text
    return None
