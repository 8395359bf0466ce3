"""What a worker tells about itself: introspection, load, liveness, tokens, cache control."""

from __future__ import annotations

import datetime
import time
from typing import TYPE_CHECKING, Any

from aiohttp import web

from sgl_router.lab.mock_worker.config import Role
from sgl_router.lab.mock_worker.generation import encode_chat, field
from sgl_router.lab.mock_worker.http_generate import read_object, refusal_response
from sgl_router.lab.mock_worker.rank import RankEngine
from sgl_router.lab.mock_worker.refusal import Refusal, invalid
from sgl_router.lab.mock_worker.scheduler import EngineRequest, FinishReason
from sgl_router.lab.mock_worker.server_info import model_info, server_info

if TYPE_CHECKING:
    from sgl_router.lab.mock_worker.worker import MockWorker

_FLUSHED = (
    "Cache flushed.\nPlease check backend logs for more details. "
    "(When there are running or waiting requests, the operation will not be performed.)\n"
)


class InfoRoutes:
    """Handlers of everything that does not generate."""

    def __init__(self, worker: MockWorker) -> None:
        self._worker = worker

    def routes(self) -> list[web.RouteDef]:
        """What to mount, by what the engine version has."""
        profile = self._worker.profile
        routes = [
            web.get("/health", self._health),
            web.get("/health_generate", self._health),
            web.get("/v1/models", self._models),
            web.post("/tokenize", self._tokenize),
            web.post("/v1/tokenize", self._tokenize),
            web.post("/detokenize", self._detokenize),
            web.post("/v1/detokenize", self._detokenize),
        ]
        if profile.is_vllm:
            return [*routes, web.get("/version", self._version), web.get("/load", self._vllm_load)]
        routes += [
            web.get("/server_info", self._server_info),
            web.get("/get_server_info", self._server_info),
            web.get("/model_info", self._model_info),
            web.get("/get_model_info", self._model_info),
            web.get("/flush_cache", self._flush_cache),
            web.post("/flush_cache", self._flush_cache),
            web.post("/abort_request", self._abort_request),
        ]
        if profile.has_ready:
            routes.append(web.get("/ready", self._ready))
        if profile.has_loads:
            routes.append(web.get("/v1/loads", self._loads))
        if profile.has_get_load:
            routes.append(web.get("/get_load", self._get_load))
        return routes

    async def _server_info(self, request: web.Request) -> web.Response:
        return web.json_response(server_info(self._worker))

    async def _model_info(self, request: web.Request) -> web.Response:
        return web.json_response(model_info(self._worker.config))

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": self._worker.profile.version})

    async def _vllm_load(self, request: web.Request) -> web.Response:
        loads = [engine.model.load() for engine in self._worker.engines]
        return web.json_response({"server_load": sum(load.running + load.waiting for load in loads)})

    async def _models(self, request: web.Request) -> web.Response:
        config = self._worker.config
        card = {
            "id": config.model_id,
            "object": "model",
            "created": int(self._worker.started_at),
            "owned_by": "vllm" if self._worker.profile.is_vllm else "sglang",
            "root": config.model_id,
            "parent": None,
            "max_model_len": config.context_length,
        }
        return web.json_response({"object": "list", "data": [card]})

    async def _ready(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self._worker.ready else 503)

    async def _health(self, request: web.Request) -> web.Response:
        """Like the engine's: an idle worker proves itself by generating one token."""
        worker = self._worker
        if not worker.ready:
            return web.Response(status=503)
        engine = worker.engines[0]
        if engine.model.idle:
            probe = EngineRequest(rid="HEALTH_CHECK", prompt=(0,), output=(0,), finish=FinishReason.LENGTH)
            engine.submit(probe, lambda progress: None)
            await engine.idle()
        return web.Response(status=200)

    async def _loads(self, request: web.Request) -> web.Response:
        engines = self._worker.engines
        wanted = request.query.get("dp_rank")
        if wanted is not None:
            if not wanted.isdigit() or int(wanted) >= len(engines):
                return refusal_response(Refusal(f"dp_rank {wanted} is invalid", kind="400"), openai=True)
            engines = [engines[int(wanted)]]
        return web.json_response(
            {
                "timestamp": datetime.datetime.now(datetime.timezone.utc).isoformat(),
                "version": self._worker.profile.version,
                "loads": [self._load_report(engine) for engine in engines],
            }
        )

    def _load_report(self, engine: RankEngine) -> dict[str, Any]:
        load, role = engine.model.load(), self._worker.config.role
        report: dict[str, Any] = {
            "dp_rank": engine.rank,
            "timestamp": time.time(),
            "num_running_reqs": load.running,
            "num_waiting_reqs": load.waiting,
            "num_used_tokens": load.used_tokens,
            "max_total_num_tokens": load.max_tokens,
            "max_running_requests": load.max_running,
            "token_usage": round(load.used_tokens / load.max_tokens, 4) if load.max_tokens else 0.0,
            "gen_throughput": 0.0,
            "cache_hit_rate": 0.0,
            "utilization": round(load.running / load.max_running, 4),
            "disaggregation": {"mode": "null" if role is Role.PLAIN else role.value},
            "queues": {"waiting": load.waiting, "grammar": 0, "paused": 0, "retracted": 0},
        }
        if self._worker.profile.loads_tell_queued_tokens:
            report["num_waiting_uncached_tokens"] = load.waiting_uncached_tokens
            report["num_total_tokens"] = load.used_tokens + engine.model.queued_tokens
        if self._worker.profile.loads_tell_prefill_totals:
            report["total_prefill_uncached_tokens"] = engine.model.prefilled_tokens
            report["total_prefill_busy_us"] = int(engine.model.prefill_secs * 1e6)
        return report

    async def _get_load(self, request: web.Request) -> web.Response:
        engines = self._worker.engines
        return web.json_response(
            [
                {
                    "dp_rank": engine.rank if len(engines) > 1 else None,
                    "num_reqs": load.running + load.waiting,
                    "num_waiting_reqs": load.waiting,
                    "num_tokens": load.used_tokens + engine.model.queued_tokens,
                }
                for engine in engines
                for load in (engine.model.load(),)
            ]
        )

    async def _flush_cache(self, request: web.Request) -> web.Response:
        flushed = self._worker.flush_cache()
        return web.Response(text=_FLUSHED, status=200 if flushed else 400)

    async def _abort_request(self, request: web.Request) -> web.Response:
        try:
            body = await read_object(request)
            rid, everything = field(body, "rid", str, ""), field(body, "abort_all", bool, False)
        except Refusal as refusal:
            return refusal_response(refusal, openai=True)
        if rid or everything:
            for engine in self._worker.engines:
                engine.abort(lambda running: everything or running.rid.startswith(rid))
        return web.Response(status=200)

    async def _tokenize(self, request: web.Request) -> web.Response:
        worker = self._worker
        try:
            body = await read_object(request)
            tokens, count = await self._tokens(body)
        except Refusal as refusal:
            return refusal_response(refusal, openai=True)
        return web.json_response({"tokens": tokens, "count": count, "max_model_len": worker.config.context_length})

    async def _tokens(self, body: dict[str, Any]) -> tuple[Any, Any]:
        tokenizer, prompt = self._worker.tokenizer, body.get("prompt")
        if body.get("messages") is not None and self._worker.profile.tokenizes_messages:
            ids = list(await encode_chat(tokenizer, body))
            return ids, len(ids)
        special = field(body, "add_special_tokens", bool, True)
        if isinstance(prompt, str):
            ids = (await tokenizer.encode_text(prompt, special)).tolist()
            return ids, len(ids)
        if isinstance(prompt, list) and all(isinstance(text, str) for text in prompt):
            rows = [(await tokenizer.encode_text(text, special)).tolist() for text in prompt]
            return rows, [len(row) for row in rows]
        raise Refusal(f"Invalid prompt type: {type(prompt)}. Expected str or List[str].")

    async def _detokenize(self, request: web.Request) -> web.Response:
        tokenizer = self._worker.tokenizer
        try:
            body = await read_object(request)
            tokens = field(body, "tokens", list)
            skip = field(body, "skip_special_tokens", bool, True)
            if tokens is None:
                raise invalid("'tokens' is required")
            text: str | list[str]
            if all(type(token) is int for token in tokens):
                text = tokenizer.decode(tokens, skip) if tokens else ""
            elif all(isinstance(row, list) and all(type(token) is int for token in row) for row in tokens):
                text = [tokenizer.decode(row, skip) for row in tokens]
            else:
                raise Refusal("Invalid input: 'tokens' must be a list of integers.")
        except Refusal as refusal:
            return refusal_response(refusal, openai=True)
        return web.json_response({"text": text})
