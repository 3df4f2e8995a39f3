"""InferenceService: Generate, Tokenize, Detokenize."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import partial

import msgspec

from inferd.config import InferdConfig
from inferd.errors import InvalidConstraint, InvalidParameter
from inferd.front.constraints import ConstraintChecker
from inferd.front.engine import FrontEngine
from inferd.front.generation import Generation
from inferd.front.output import OutputParams
from inferd.request import Constraint, ConstraintSpec, Request
from inferd.server.call import Call, CallBase, Handler
from inferd.server.convert_constraint import constraint_field
from inferd.server.convert_prompt import (
    PromptText,
    check_prompt,
    encode_arguments,
    encode_bad_words,
    encode_prompt,
    prompt_bytes,
    prompt_text,
)
from inferd.server.convert_request import Bounds, CallParams, build_request, check_request
from inferd.server.convert_response import ResponseWriter, usage_to_pb
from inferd.server.fields import check_count, check_token_ids
from inferd.server.served_model import ServedModel
from inferd.server.tasks import require
from inferd.server.text_pool import TextPool
from inferd.text.tokenizer import Tokenizer
from inferd.v1 import inference_pb2, model_pb2

USAGE_TRAILER = "x-inferd-usage-bin"


class InferenceService:
    """Handlers only; what they share is read-only or has its own owner."""

    def __init__(
        self,
        config: InferdConfig,
        model: ServedModel,
        front: FrontEngine,
        pool: TextPool,
        checker: ConstraintChecker,
    ) -> None:
        self._config = config
        self._model = model
        self._front = front
        self._pool = pool
        self._checker = checker
        self._draw_seed = seed_source(config.server.seed)

    def handlers(self) -> Mapping[str, Handler]:
        return {"Generate": self.generate, "Tokenize": self.tokenize, "Detokenize": self.detokenize}

    async def generate(self, pb: inference_pb2.GenerateRequest, call: CallBase) -> None:
        self._front.check_serving()
        require(self._model, model_pb2.TASK_GENERATE)
        request, output, truncated = await self._request_of(pb, call)
        text = await self._prompt_text(pb, request, truncated) if pb.output.prompt_text else None
        writer = ResponseWriter(request, pb.output, self._model.tokenizer, truncated, text)
        with self._front.generate(request, output, self._model.tokenizer) as generation:
            try:
                async for delta in generation:
                    await call.write(writer.message(delta))
            finally:
                note_end(call, generation)

    async def tokenize(self, pb: inference_pb2.TokenizeRequest, call: Call) -> inference_pb2.TokenizeResponse:
        self._model.check_name(pb.model)
        check_inputs(len(pb.inputs), self._config.server.limits.max_batch_inputs)
        tokenizer = self._model.tokenizer
        for index, prompt in enumerate(pb.inputs):
            check_prompt(f"inputs[{index}]", prompt, tokenizer.vocab_size)
            if prompt.WhichOneof("kind") == "token_ids":
                field = f"inputs[{index}].token_ids"
                raise InvalidParameter(f"{field}: text or segments are tokenized, ids are tokens already", field=field)
        return await self._pool.run(pb.ByteSize(), partial(tokenize_batch, pb, tokenizer))

    async def detokenize(self, pb: inference_pb2.DetokenizeRequest, call: Call) -> inference_pb2.DetokenizeResponse:
        self._model.check_name(pb.model)
        check_inputs(len(pb.inputs), self._config.server.limits.max_batch_inputs)
        tokenizer = self._model.tokenizer
        for index, item in enumerate(pb.inputs):
            check_token_ids(f"inputs[{index}].ids", item.ids, tokenizer.vocab_size)
        return await self._pool.run(pb.ByteSize(), partial(detokenize_batch, pb, tokenizer))

    async def _request_of(
        self, pb: inference_pb2.GenerateRequest, call: CallBase
    ) -> tuple[Request, OutputParams, bool]:
        """Validate, tokenize, resolve. Nothing is tokenized before every other field has been checked."""
        server, ready, tokenizer = self._config.server, self._front.ready, self._model.tokenizer
        assert ready is not None
        max_num_seqs = self._config.engine.scheduler.max_num_seqs
        vocab_size = min(tokenizer.vocab_size, ready.vocab_size)
        bounds = Bounds(self._model, server.limits, vocab_size, ready.max_context_tokens, max_num_seqs, self._draw_seed)
        call_params = CallParams(
            key=next(self._front.keys),
            request_id=call.request_id,
            deadline=call.deadline(server.limits.max_deadline_s),
            default_queue_timeout_s=server.queue_timeout_s,
            tenant=call.tenant(),
        )
        checked = check_request(pb, bounds)
        constraint = None
        if checked.constraint is not None:
            constraint = await self._compile(pb.constraint, checked.constraint, ready.vocab_size)
        prompt_ids = await self._pool.run(prompt_bytes(pb.prompt), partial(encode_prompt, pb.prompt, tokenizer))
        words = list(pb.sampling.bad_words)
        bad_words = encode_bad_words(words, tokenizer, server.limits.max_bad_word_tokens) if words else ()
        request, truncated = build_request(pb, checked, prompt_ids, bad_words, bounds, call_params)
        return msgspec.structs.replace(request, constraint=constraint), checked.output, truncated

    async def _prompt_text(self, pb: inference_pb2.GenerateRequest, request: Request, truncated: bool) -> PromptText:
        ids, tokenizer = list(request.prompt_token_ids), self._model.tokenizer
        size = max(prompt_bytes(pb.prompt), len(ids))
        return await self._pool.run(size, partial(prompt_text, pb.prompt, ids, truncated, tokenizer))

    async def _compile(self, pb: inference_pb2.Constraint, spec: ConstraintSpec, vocab_size: int) -> Constraint:
        """Raises InvalidConstraint naming the field."""
        try:
            return Constraint(await self._checker.check(spec, vocab_size), pb.starts_after)
        except InvalidConstraint as error:
            field = ".".join(filter(None, (constraint_field(pb), error.field)))
            raise InvalidConstraint(f"{field}: {error.message}", field=field) from None


def seed_source(seed: int | None) -> Callable[[], int]:
    """Draws the seeds of requests without one; the same sequence of them at every start when `seed` is given."""
    source = random.SystemRandom() if seed is None else random.Random(seed)
    return lambda: source.getrandbits(64)


def note_end(call: CallBase, generation: Generation) -> None:
    """Usage for meters and logs, also of what failed."""
    usage, ttft = generation.usage, generation.ttft_s
    call.trailers = ((USAGE_TRAILER, usage_to_pb(usage).SerializeToString()),)
    call.log_fields = {"prompt_tokens": usage.prompt_tokens, "tokens": usage.completion_tokens}
    if ttft is not None:
        call.log_fields["ttft_ms"] = round(ttft * 1e3, 1)


def check_inputs(count: int, limit: int) -> None:
    if not count:
        raise InvalidParameter("inputs is empty", field="inputs")
    check_count("inputs", range(count), limit)


def tokenize_batch(pb: inference_pb2.TokenizeRequest, tokenizer: Tokenizer) -> inference_pb2.TokenizeResponse:
    response = inference_pb2.TokenizeResponse(tokenizer_fingerprint=tokenizer.fingerprint)
    for prompt in pb.inputs:
        item = response.inputs.add()
        if pb.offsets and not pb.count_only:
            ids, starts, ends = tokenizer.encode_with_offsets(*encode_arguments(prompt))
            item.starts.extend(starts)
            item.ends.extend(ends)
        else:
            ids = encode_prompt(prompt, tokenizer)
        item.count = len(ids)
        if pb.count_only:
            continue
        item.token_ids.extend(ids)
        if pb.pieces:
            item.pieces.extend([tokenizer.token_bytes(token_id) for token_id in ids])
        if pb.vocabulary_strings:
            item.vocabulary_strings.extend([tokenizer.vocabulary_string(token_id) for token_id in ids])
    return response


def detokenize_batch(pb: inference_pb2.DetokenizeRequest, tokenizer: Tokenizer) -> inference_pb2.DetokenizeResponse:
    return inference_pb2.DetokenizeResponse(
        texts=[tokenizer.decode(list(item.ids), pb.skip_special_tokens) for item in pb.inputs]
    )
