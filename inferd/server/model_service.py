"""ModelService: what is served, and everything a gateway needs to serve it without a tokenizer."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping

from inferd import __version__
from inferd.config import InferdConfig
from inferd.messages import Ready
from inferd.models.pooling import Embedding
from inferd.request import ConstraintKind
from inferd.server.call import Call, Handler
from inferd.server.served_model import ServedModel
from inferd.server.tasks import tasks_of
from inferd.server.text_formats import reasoning_format
from inferd.server.text_pool import TextPool
from inferd.v1 import common_pb2, inference_pb2, model_pb2

CHUNK_BYTES = 1 << 20


class ModelService:
    """`engine` gives the running core's facts; before there is one, what is not known yet is zero."""

    def __init__(
        self,
        config: InferdConfig,
        model: ServedModel,
        engine: Callable[[], Ready | None],
        instance_id: str,
        pool: TextPool,
    ) -> None:
        self._config = config
        self._model = model
        self._engine = engine
        self._instance_id = instance_id
        self._pool = pool
        self._started = int(time.time())

    def handlers(self) -> Mapping[str, Handler]:
        return {
            "ListModels": self.list_models,
            "GetModelInfo": self.get_model_info,
            "GetServerInfo": self.get_server_info,
            "DownloadTokenizer": self.download_tokenizer,
        }

    async def list_models(self, pb: model_pb2.ListModelsRequest, call: Call) -> model_pb2.ListModelsResponse:
        return model_pb2.ListModelsResponse(models=[self._card()])

    async def get_model_info(self, pb: model_pb2.GetModelInfoRequest, call: Call) -> model_pb2.GetModelInfoResponse:
        self._model.check_name(pb.model)
        info = self._info()
        info.etag = hashlib.sha256(info.SerializeToString(deterministic=True)).hexdigest()[:32]
        if pb.if_none_match == info.etag:
            return model_pb2.GetModelInfoResponse(etag=info.etag)
        return info

    async def get_server_info(self, pb: model_pb2.GetServerInfoRequest, call: Call) -> model_pb2.GetServerInfoResponse:
        engine, config = self._engine(), self._config.engine
        response = model_pb2.GetServerInfoResponse(
            version=__version__,
            instance_id=self._instance_id,
            started_unix=self._started,
            topology=model_pb2.Topology(
                tensor_parallel=config.parallel.tensor_parallel_size,
                pipeline_parallel=config.parallel.pipeline_parallel_size,
                devices=[config.device.device],
            ),
            max_running=config.scheduler.max_num_seqs,
            max_step_tokens=config.scheduler.max_num_batched_tokens,
        )
        if engine is not None:
            response.kv_block_tokens = engine.block_size
            response.kv_blocks = engine.num_blocks
            response.kernel_backends.update(engine.backends)
            for name, seconds in engine.phases.items():
                response.startup_phases.add(name=name, elapsed_us=round(seconds * 1e6))
        return response

    async def download_tokenizer(self, pb: model_pb2.DownloadTokenizerRequest, call: Call) -> None:
        """One message at least for every file, however empty; a client that has the tokenizer gets its name only."""
        self._model.check_name(pb.model)
        fingerprint = self._model.tokenizer.fingerprint
        if pb.if_none_match == fingerprint:
            await call.write(model_pb2.DownloadTokenizerResponse(fingerprint=fingerprint))
            return
        files = await self._pool.run(CHUNK_BYTES, self._model.tokenizer_files)
        for name, data in files.items():
            for offset in range(0, max(len(data), 1), CHUNK_BYTES):
                piece = model_pb2.DownloadTokenizerResponse(
                    file_name=name,
                    data=data[offset : offset + CHUNK_BYTES],
                    fingerprint=fingerprint,
                    total_bytes=len(data),
                )
                await call.write(piece)

    def _card(self) -> model_pb2.ModelCard:
        engine = self._engine()
        return model_pb2.ModelCard(
            name=self._model.name,
            aliases=self._model.names[1:],
            tasks=tasks_of(self._model.capabilities),
            created_unix=self._model.created,
            max_context_tokens=engine.max_context_tokens if engine else 0,
        )

    def _info(self) -> model_pb2.GetModelInfoResponse:
        model, engine = self._model, self._engine()
        return model_pb2.GetModelInfoResponse(
            card=self._card(),
            architecture=model.architecture,
            revision=model.revision,
            dtype=engine.dtype if engine else "",
            quantization=engine.quantization if engine else "",
            tokenizer=self._tokenizer(),
            chat_templates=[
                model_pb2.ChatTemplate(name=name, source=source) for name, source in model.chat_templates.items()
            ],
            template_variables={f"{role}_token": text for role, text, _ in model.tokenizer.special_tokens if role},
            default_sampling=self._default_sampling(),
            reasoning_format=reasoning_format(model.chat_templates),
            limits=self._limits(),
            constraints=[
                model_pb2.ConstraintKind.Name(kind) for kind in ConstraintKind if model.capabilities.generates
            ],
            default_truncation=common_pb2.TRUNCATION_ERROR,
            embedding=embedding_to_pb(model.capabilities.embedding),
        )

    def _tokenizer(self) -> model_pb2.TokenizerInfo:
        tokenizer = self._model.tokenizer
        return model_pb2.TokenizerInfo(
            fingerprint=tokenizer.fingerprint,
            kind=tokenizer.kind,
            vocab_size=tokenizer.vocab_size,
            special_tokens=[
                model_pb2.SpecialToken(role=role, text=text, id=token_id)
                for role, text, token_id in tokenizer.special_tokens
            ],
            eos_token_ids=tokenizer.eos_token_ids,
            adds_bos=tokenizer.adds_bos,
            adds_eos=tokenizer.adds_eos,
            byte_level=tokenizer.byte_level,
        )

    def _default_sampling(self) -> inference_pb2.SamplingParams:
        given = dict(self._model.default_sampling)
        pb = inference_pb2.SamplingParams()
        if "top_k" in given:
            pb.top_k = int(given.pop("top_k"))
        for name, value in given.items():
            setattr(pb, name, value)
        return pb

    def _limits(self) -> model_pb2.Limits:
        limits, engine = self._config.server.limits, self._engine()
        scheduler = self._config.engine.scheduler
        context = engine.max_context_tokens if engine else 0
        return model_pb2.Limits(
            max_context_tokens=context,
            max_output_tokens=max(context - 1, 0) if self._model.capabilities.generates else 0,
            max_choices=min(limits.max_choices, scheduler.max_num_seqs),
            max_top_logprobs=limits.max_top_logprobs,
            max_stop_strings=limits.max_stop_strings,
            max_batch_inputs=limits.max_batch_inputs,
            max_message_bytes=limits.max_message_bytes,
            max_queue=scheduler.max_waiting,
        )


def embedding_to_pb(embedding: Embedding | None) -> model_pb2.EmbeddingInfo | None:
    if embedding is None:
        return None
    return model_pb2.EmbeddingInfo(
        dimensions=embedding.dimensions,
        matryoshka_dimensions=embedding.matryoshka,
        pooling=embedding.pooling,
        normalized=embedding.normalize,
        query_prefix=embedding.query_prefix,
        document_prefix=embedding.document_prefix,
    )
