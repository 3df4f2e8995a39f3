"""Which models there are, at which daemon, and what each needs to be served."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass

import grpc

from inferd.v1 import common_pb2, inference_pb2, model_pb2
from inferd_gateway.backend import Backend, CallContext
from inferd_gateway.errors import ApiError, invalid, model_not_found
from inferd_gateway.parsers.reasoning import REASONING_FORMATS
from inferd_gateway.parsers.registry import FORMATS, ToolFormat
from inferd_gateway.routing import choose
from inferd_gateway.settings import Settings
from inferd_gateway.templates.renderer import ChatTemplate, Renderer
from inferd_gateway.tool_detection import detect_tool_format

REFRESH_S = 5.0
RETRY_S = 1.0
CALL_S = 5.0
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServedModel:
    """A model at one daemon. `name` is the daemon's; `public_names` those that callers use, the main one first."""

    name: str
    public_names: tuple[str, ...]
    backend: Backend
    info: model_pb2.GetModelInfoResponse
    chat_template: ChatTemplate | None
    tool_template: ChatTemplate | None = None  # a variant for conversations with tools
    tool_format: ToolFormat | None = None
    reasoning_format: str = ""
    reasoning_end: int | None = None  # the token that ends the reasoning, where it is one token

    @property
    def fingerprint(self) -> str:
        return "fp_" + hashlib.sha256(self.info.etag.encode()).hexdigest()[:12]

    @property
    def weights(self) -> tuple[str, ...]:
        """Equal for two daemons that give the same tokens for the same request."""
        info = self.info
        return (info.card.name, info.architecture, info.revision, info.dtype, info.quantization,
                info.tokenizer.fingerprint)  # fmt: skip

    @property
    def generates(self) -> bool:
        """A daemon that names no task is older than tasks are."""
        tasks = self.info.card.tasks
        return not tasks or model_pb2.TASK_GENERATE in tasks

    @property
    def context_tokens(self) -> int:
        return self.info.card.max_context_tokens


class ModelDirectory:
    """Keeps GetModelInfo of every backend's models, refreshed by etag."""

    def __init__(
        self, backends: Sequence[Backend], settings: Settings, template: str | None, renderer: Renderer
    ) -> None:
        self.backends = tuple(backends)
        self._settings = settings
        self._template_override = template
        self._renderer = renderer
        self._aliases = dict(alias.split("=", 1) for alias in settings.model_alias)
        self._models: dict[Backend, dict[str, ServedModel]] = {backend: {} for backend in backends}
        self._refreshing = asyncio.Lock()
        self._refreshed = -REFRESH_S

    def all(self) -> list[tuple[str, ServedModel]]:
        """(public name, model), each name once."""
        found: dict[str, ServedModel] = {}
        for models in self._models.values():
            for model in models.values():
                for name in model.public_names:
                    found.setdefault(name, model)
        for alias, name in self._aliases.items():
            if name in found:
                found.setdefault(alias, found[name])
        return list(found.items())

    async def resolve(self, name: str | None, affinity: bytes | None = None) -> ServedModel:
        """The model at the daemon that suits best (routing.choose). None: the only model. Raises a 400, 404 or 503
        ApiError."""
        name = self._aliases.get(name, name) if name is not None else None
        candidates = self._candidates(name)
        if not candidates:
            await self.refresh(not_older_than_s=1.0)
            candidates = self._candidates(name)
        if candidates:
            chosen = choose(candidates, affinity)
            chosen.backend.times_chosen += 1
            return chosen
        if not any(self._models.values()):
            raise ApiError(
                503, "No model is ready yet.", error_type="service_unavailable", code="model_loading", retry=True,
                headers={"retry-after": "1"},
            )  # fmt: skip
        if name is None:
            raise invalid("model", "you must provide a model parameter")
        raise model_not_found(name)

    def elsewhere(self, model: ServedModel, avoid: Backend) -> Backend:
        """Where a request to `model` that `avoid` dropped may go on: a daemon with the same weights, else `avoid`."""
        others = [
            other
            for models in self._models.values()
            for other in models.values()
            if other.backend is not avoid and other.weights == model.weights and other.backend.serving is not False
        ]
        return choose(others, None).backend if others else avoid

    def _candidates(self, name: str | None) -> list[ServedModel]:
        models = [model for by_name in self._models.values() for model in by_name.values()]
        if name is None:
            return models if len({model.name for model in models}) == 1 else []
        return [model for model in models if name in model.public_names]

    async def keep_fresh(self) -> None:
        """Runs until cancelled."""
        followers = (each(backend) for backend in self.backends for each in (self._follow, Backend.watch_load))
        await asyncio.gather(*followers)

    async def _follow(self, backend: Backend) -> None:
        """Ask a daemon what it serves whenever its health changes; one without health is asked now and then.

        Nobody else writes `backend.serving`: a daemon that drains or has no engine still lists its models.
        """
        while True:
            try:
                async with aclosing(backend.watch()) as statuses:
                    async for serving in statuses:
                        if not serving:
                            backend.serving = False
                        if not await self._refresh_backend(backend):
                            break
                        backend.serving = serving
            except grpc.aio.AioRpcError as error:
                without_health = error.code() is grpc.StatusCode.UNIMPLEMENTED
                backend.serving = without_health and await self._refresh_backend(backend)
            await asyncio.sleep(REFRESH_S if backend.serving and self._models[backend] else RETRY_S)

    async def refresh(self, not_older_than_s: float = 0.0) -> None:
        async with self._refreshing:
            if time.monotonic() - self._refreshed >= not_older_than_s:
                await asyncio.gather(*(self._refresh_backend(backend) for backend in self.backends))
                self._refreshed = time.monotonic()

    async def _refresh_backend(self, backend: Backend) -> bool:
        """Whether the daemon answered. What was known stays known while it is away: its requests then answer 503, not
        404."""
        context = CallContext("directory", time.monotonic() + CALL_S)
        known = self._models[backend]
        try:
            listed = await backend.unary(backend.models.ListModels, model_pb2.ListModelsRequest(), context)
            found = {}
            for card in listed.models:
                old = known.get(card.name)
                request = model_pb2.GetModelInfoRequest(model=card.name, if_none_match=old.info.etag if old else "")
                info = await backend.unary(backend.models.GetModelInfo, request, context)
                unchanged = old is not None and info.etag == old.info.etag
                found[card.name] = old if unchanged and old else await self._load(backend, info)
        except grpc.aio.AioRpcError as error:
            log.debug("a daemon does not answer", extra={"backend": backend.target, "status": error.code().name})
            return False
        self._models[backend] = found
        return True

    async def _load(self, backend: Backend, info: model_pb2.GetModelInfoResponse) -> ServedModel:
        own = (info.card.name, *info.card.aliases)
        wanted = self._settings
        template, tool_template = self._chat_template(info), self._chat_template(info, "tool_use")
        tools: str = wanted.tool_call_parser
        if tools == "auto" and (shown := tool_template or template) is not None:
            tools = await detect_tool_format(self._renderer, shown)
        reasoning = info.reasoning_format if wanted.reasoning_parser == "auto" else wanted.reasoning_parser
        model = ServedModel(
            info.card.name,
            self._settings.served_model_name or own,
            backend,
            info,
            template,
            tool_template,
            FORMATS.get(tools),
            reasoning if reasoning in REASONING_FORMATS else "",
            await token_of(backend, info.card.name, REASONING_FORMATS[reasoning].close)
            if reasoning in REASONING_FORMATS
            else None,
        )
        form = {"tool_calls": tools or "unknown", "reasoning": model.reasoning_format or "none"}
        log.info("serving a model", extra={"model": info.card.name, "backend": backend.target, **form})
        if model.chat_template is not None:
            problem = await self._renderer.warm(model.chat_template)
            if problem:
                log.warning("the chat template does not compile", extra={"model": model.name, "problem": problem})
        return model

    def _chat_template(self, info: model_pb2.GetModelInfoResponse, name: str = "default") -> ChatTemplate | None:
        sources = {template.name: template.source for template in info.chat_templates}
        source = self._template_override or sources.get(name)
        if name == "default":
            source = source or next(iter(sources.values()), None)
        if source is None:
            return None
        return ChatTemplate(
            source,
            tuple(token.text for token in info.tokenizer.special_tokens),
            self._settings.chat_template_content_format,
            tuple(sorted(info.template_variables.items())),
        )


async def token_of(backend: Backend, model: str, text: str) -> int | None:
    """The id of a text that is a token of its own. Raises grpc.aio.AioRpcError."""
    prompt = common_pb2.Prompt(text=text, add_special_tokens=False)
    request = inference_pb2.TokenizeRequest(model=model, inputs=[prompt])
    context = CallContext("directory", time.monotonic() + CALL_S)
    ids = (await backend.unary(backend.inference.Tokenize, request, context)).inputs[0].token_ids
    return ids[0] if len(ids) == 1 else None
