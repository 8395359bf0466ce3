"""From the body of a generating endpoint to the sequences the engine is asked for."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgspec

from sgl_router.lab.mock_worker.answers import Tokenizer
from sgl_router.lab.mock_worker.config import MockWorkerConfig, Role
from sgl_router.lab.mock_worker.namespace import Namespace
from sgl_router.lab.mock_worker.output_format import OutputFormat, output_format
from sgl_router.lab.mock_worker.profile import EngineProfile
from sgl_router.lab.mock_worker.refusal import Refusal, invalid
from sgl_router.tokenization import Unrenderable, UnrenderableReason

_DEFAULT_COMPLETION_TOKENS = 16
_DEFAULT_GENERATE_TOKENS = 128
_MAX_TOP_LOGPROBS = 20


class Endpoint(str, Enum):
    """The three generating endpoints."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    GENERATE = "/generate"


@dataclass(frozen=True)
class Bootstrap:
    """How a prefill/decode pair finds each other for one prompt."""

    host: str | None
    port: int | None
    room: int


@dataclass(frozen=True)
class Prompt:
    """One sequence to continue."""

    rid: str
    tokens: tuple[int, ...]
    bootstrap: Bootstrap | None


@dataclass(frozen=True)
class Generation:
    """A parsed request: `variants` answers to each prompt, all on one rank.

    `output_format`: the text that a chat is bound to. `stop`: texts before which an answer ends. `logprobs`: how many
    alternatives of each token are told, None where no log probabilities are.
    """

    endpoint: Endpoint
    model: str
    prompts: tuple[Prompt, ...]
    batched: bool
    variants: int
    max_tokens: int | None
    ignore_eos: bool
    stream: bool
    include_usage: bool
    rank: int | None
    namespace: Namespace
    session_id: str | None
    output_format: OutputFormat | None
    stop: tuple[str, ...]
    logprobs: int | None
    wants_cached_details: bool
    wants_prompt_ids: bool
    wants_input_ids: bool


def field(body: Mapping[str, Any], name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
    """A typed, optional field; null counts as absent, and a bool is no integer."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise invalid(f"'{name}' has the wrong type: {type(value).__name__}")
    return value


def _stop(sampling: Mapping[str, Any]) -> tuple[str, ...]:
    given = field(sampling, "stop", (str, list))
    texts = [given] if isinstance(given, str) else given or []
    if not all(isinstance(text, str) for text in texts):
        raise invalid("'stop' must be a text or a list of texts")
    return tuple(text for text in texts if text)


def _logprobs(endpoint: Endpoint, body: Mapping[str, Any]) -> int | None:
    if endpoint is Endpoint.GENERATE:
        wanted, count = field(body, "return_logprob", bool, False), 0
    elif endpoint is Endpoint.COMPLETIONS:
        count = field(body, "logprobs", int, -1)
        wanted = count >= 0
    else:
        wanted, count = field(body, "logprobs", bool, False), field(body, "top_logprobs", int, 0)
    if not wanted:
        return None
    if not 0 <= count <= _MAX_TOP_LOGPROBS:
        raise invalid(f"'top_logprobs' must be from 0 to {_MAX_TOP_LOGPROBS}, not {count}")
    return int(count)


def _token_list(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


class GenerationParser:
    """Parses bodies as the configured engine version would."""

    def __init__(self, config: MockWorkerConfig, profile: EngineProfile, tokenizer: Tokenizer, load_id: str) -> None:
        self._config = config
        self._profile = profile
        self._tokenizer = tokenizer
        self._load_id = load_id

    async def parse(self, endpoint: Endpoint, body: Mapping[str, Any], headers: Mapping[str, str]) -> Generation:
        """The generation a request asks for; raises Refusal."""
        sampling = body if endpoint is not Endpoint.GENERATE else field(body, "sampling_params", dict, {})
        sequences, batched = await self._prompts(endpoint, body)
        variants = field(sampling, "n", int, 1)
        if variants < 1:
            raise invalid(f"'n' must be at least 1, not {variants}")
        options = field(body, "stream_options", dict, {})
        max_tokens = self._max_tokens(endpoint, sampling)
        for tokens in sequences:
            self._check_length(tokens, max_tokens)
        rids = self._rids(body, len(sequences))
        return Generation(
            endpoint=endpoint,
            model=field(body, "model", str, self._config.model_id),
            prompts=tuple(
                Prompt(rid, tokens, self._bootstrap(body, rid, index))
                for index, (rid, tokens) in enumerate(zip(rids, sequences, strict=True))
            ),
            batched=batched,
            variants=variants,
            max_tokens=max_tokens,
            ignore_eos=field(sampling, "ignore_eos", bool, False),
            stream=field(body, "stream", bool, False),
            include_usage=field(options, "include_usage", bool, False),
            rank=self._rank(endpoint, body, headers),
            namespace=self._namespace(endpoint, body),
            session_id=field(body, "session_id", str),
            output_format=output_format(body) if endpoint is Endpoint.CHAT else None,
            stop=_stop(sampling),
            logprobs=_logprobs(endpoint, body),
            wants_cached_details=field(body, "return_cached_tokens_details", bool, False),
            wants_prompt_ids=field(body, "return_prompt_token_ids", bool, False),
            wants_input_ids=headers.get("x-sglext-return-input-ids") == "1",
        )

    async def _prompts(self, endpoint: Endpoint, body: Mapping[str, Any]) -> tuple[list[tuple[int, ...]], bool]:
        if endpoint is Endpoint.CHAT:
            return [await self._chat_prompt(body)], False
        if endpoint is Endpoint.COMPLETIONS:
            given = body.get("prompt")
        else:
            given = body.get("input_ids") if body.get("input_ids") is not None else body.get("text")
        if isinstance(given, str) or (_token_list(given) and given):
            return [await self._sequence(given)], False
        if isinstance(given, list) and given:
            return [await self._sequence(item) for item in given], True
        raise invalid("a prompt is required: text, token ids, or a non-empty list of either")

    async def _chat_prompt(self, body: Mapping[str, Any]) -> tuple[int, ...]:
        messages = body.get("messages")
        if not isinstance(messages, list):
            raise invalid("'messages' must be a list")
        if not messages:
            raise Refusal("Messages cannot be empty.")
        ids = body.get("input_ids")
        if ids is not None and self._profile.chat_takes_input_ids:
            if not _token_list(ids) or not ids:
                raise invalid("'input_ids' must be a non-empty list of token ids")
            return tuple(ids)
        return await encode_chat(self._tokenizer, {**body, "input_ids": None})

    async def _sequence(self, given: Any) -> tuple[int, ...]:
        if isinstance(given, str):
            return tuple((await self._tokenizer.encode_text(given)).tolist())
        if _token_list(given) and given:
            return tuple(given)
        raise invalid("each prompt must be text or a non-empty list of token ids")

    def _max_tokens(self, endpoint: Endpoint, sampling: Mapping[str, Any]) -> int | None:
        if endpoint is Endpoint.GENERATE:
            limit = field(sampling, "max_new_tokens", int, _DEFAULT_GENERATE_TOKENS)
        elif endpoint is Endpoint.COMPLETIONS:
            limit = field(sampling, "max_tokens", int, _DEFAULT_COMPLETION_TOKENS)
        else:
            limit = field(sampling, "max_completion_tokens", int, field(sampling, "max_tokens", int))
        if limit is not None and limit < 0:
            raise Refusal(f"max_new_tokens must be at least 0, got {limit}.")
        return limit if limit is None else int(limit)

    def _check_length(self, tokens: tuple[int, ...], max_tokens: int | None) -> None:
        limit = self._config.context_length
        if len(tokens) >= limit:
            raise Refusal(
                f"The input ({len(tokens)} tokens) is longer than the model's context length ({limit} tokens)."
            )
        if max_tokens is not None and len(tokens) + max_tokens > limit:
            raise Refusal(
                f"Requested token count exceeds the model's maximum context length of {limit} tokens. "
                f"You requested a total of {len(tokens) + max_tokens} tokens: {len(tokens)} tokens from the "
                f"input messages and {max_tokens} tokens for the completion."
            )
        if len(tokens) >= self._config.cache_tokens - self._config.page_size:
            raise Refusal(
                "Request length is longer than the KV cache pool size or the max context length. "
                f"The input has {len(tokens)} tokens.",
                from_scheduler=True,
            )

    def _rids(self, body: Mapping[str, Any], count: int) -> list[str]:
        rid = field(body, "rid", (str, list))
        if isinstance(rid, list):
            if len(rid) != count or len(set(rid)) != count or not all(isinstance(item, str) for item in rid):
                raise Refusal("The rids of a batch must be unique strings, one per prompt.")
            return rid
        if isinstance(rid, str):
            return [rid] if count == 1 else [f"{rid}_{index}" for index in range(count)]
        return [uuid.uuid4().hex for _ in range(count)]

    def _bootstrap(self, body: Mapping[str, Any], rid: str, index: int) -> Bootstrap | None:
        if self._config.role is Role.PLAIN:
            return None
        room = field(body, "bootstrap_room", (int, list))
        room = room[index] if isinstance(room, list) and index < len(room) else room
        if not isinstance(room, int):
            raise Refusal(
                f"Invalid request: Disaggregated request received without bootstrap room id. req.rid={rid!r}",
                from_scheduler=True,
            )
        host, port = body.get("bootstrap_host"), body.get("bootstrap_port")
        host = host[index] if isinstance(host, list) and index < len(host) else host
        port = port[index] if isinstance(port, list) and index < len(port) else port
        batch = isinstance(body.get("bootstrap_room"), list)
        return Bootstrap(
            host=host if isinstance(host, str) else None,
            port=port if isinstance(port, int) else None,
            room=room if batch else room + index,
        )

    def _rank(self, endpoint: Endpoint, body: Mapping[str, Any], headers: Mapping[str, str]) -> int | None:
        rank = field(body, "routed_dp_rank", int, field(body, "data_parallel_rank", int))
        header = headers.get("x-data-parallel-rank")
        if header is not None and endpoint is not Endpoint.GENERATE and self._profile.reads_rank_header:
            try:
                rank = int(header)
            except ValueError:
                raise Refusal(
                    f"Invalid X-Data-Parallel-Rank header: must be an integer, got '{header}'", kind="400"
                ) from None
        ranks = self._config.dp_size
        if rank is not None and not 0 <= rank < ranks:
            raise Refusal(f"routed_dp_rank={rank} out of range [0, {ranks})")
        return None if rank is None else int(rank)

    def _namespace(self, endpoint: Endpoint, body: Mapping[str, Any]) -> Namespace:
        extra_key, salt = field(body, "extra_key", str), field(body, "cache_salt", str)
        if not self._profile.salts_hashes and salt is not None:
            extra_key, salt = salt + (extra_key or ""), None
        adapter = field(body, "lora_path", str)
        if adapter is None and endpoint is not Endpoint.GENERATE:
            base, _, name = field(body, "model", str, "").partition(":")
            adapter = name if name and base == self._config.model_id else None
        return Namespace(
            extra_key=extra_key,
            cache_salt=salt,
            lora_name=adapter,
            lora_id=None if adapter is None else uuid.uuid5(uuid.NAMESPACE_OID, self._load_id + adapter).hex,
        )


async def encode_chat(tokenizer: Tokenizer, body: Mapping[str, Any]) -> tuple[int, ...]:
    """The prompt of a chat body; media parts, which a mock cannot see, are taken as their JSON text."""
    try:
        return tuple((await tokenizer.encode_chat(body)).tolist())
    except Unrenderable as error:
        if error.reason is not UnrenderableReason.MEDIA:
            raise Refusal(str(error)) from error
    text = msgspec.json.encode(body["messages"]).decode()
    return tuple((await tokenizer.encode_text(text)).tolist())
