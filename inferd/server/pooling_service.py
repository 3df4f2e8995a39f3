"""The RPCs of InferenceService that answer with numbers: Embed, Score, and the bidi bulk streams."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from google.protobuf.message import Message

from inferd.errors import InvalidParameter
from inferd.server.bulk import Answer, BulkStream
from inferd.server.call import REQUEST_ID, Call, Handler
from inferd.server.convert_request import TRUNCATIONS
from inferd.server.fields import check_at_most, check_enum
from inferd.server.inputs import Caller, Serving
from inferd.server.window import Window
from inferd.v1 import inference_pb2

Work = Callable[[Any, Serving, Caller, Window], Awaitable[Message]]
Tokenize = Callable[[inference_pb2.TokenizeRequest, Call], Awaitable[inference_pb2.TokenizeResponse]]


class PoolingService:
    """Handlers only. `tokenize` is the unary call's, which the stream does item by item."""

    def __init__(self, serving: Serving, tokenize: Tokenize) -> None:
        self._serving = serving
        self._tokenize = tokenize

    def handlers(self) -> Mapping[str, Handler]:
        return {
            "Embed": partial(self._unary, embed),
            "Score": partial(self._unary, score),
            "EmbedStream": partial(self._stream, embed, inference_pb2.EmbedStreamResponse),
            "ScoreStream": partial(self._stream, score, inference_pb2.ScoreStreamResponse),
            "TokenizeStream": self._tokenize_stream,
        }

    async def _unary(self, work: Work, pb: Any, call: Call) -> Message:
        self._serving.front.check_serving()
        return await work(pb, self._serving, self._caller(pb, call, call.request_id), self._window())

    async def _stream(
        self, work: Work, response_class: type[Any], items: AsyncIterable[Message | None], call: Call
    ) -> None:
        """All items of a stream share one window: a stream takes no more of the engine than a batch does."""
        window = self._window()

        async def answer(pb: Any, default_id: str) -> Message:
            self._serving.front.check_serving()
            return await work(pb, self._serving, self._caller(pb, call, default_id), window)

        await self._bulk(call, response_class, answer).run(items)

    async def _tokenize_stream(self, items: AsyncIterable[Message | None], call: Call) -> None:
        async def answer(pb: Any, default_id: str) -> Message:
            return await self._tokenize(pb, call)

        await self._bulk(call, inference_pb2.TokenizeStreamResponse, answer).run(items)

    def _bulk(self, call: Call, response_class: type[Any], answer: Answer) -> BulkStream:
        gate, limits = self._serving.front.gate, self._serving.config.server.limits
        return BulkStream(call, response_class, answer, limits.max_stream_items, lambda: gate.drain_reason is not None)

    def _window(self) -> Window:
        size = self._serving.config.engine.scheduler.max_num_seqs
        return Window(self._serving.front, self._serving.model.tokenizer, size)

    def _caller(self, pb: Any, call: Call, default_id: str) -> Caller:
        """Raises InvalidParameter for a bad id or priority. An item's time runs from its arrival."""
        limits = self._serving.config.server.limits
        if pb.request_id and (
            len(pb.request_id) > limits.max_request_id_chars or not REQUEST_ID.fullmatch(pb.request_id)
        ):
            allowed = f"1 to {limits.max_request_id_chars} characters of [A-Za-z0-9._:-]"
            raise InvalidParameter(f"request_id must be {allowed}", field="request_id")
        check_at_most("priority", pb.priority, 2**31 - 1, low=-(2**31))
        check_enum("truncation", pb.truncation, TRUNCATIONS)
        return Caller(pb.request_id or default_id, call.deadline(limits.max_deadline_s), call.tenant(), pb.priority)


async def embed(
    pb: inference_pb2.EmbedRequest, serving: Serving, caller: Caller, window: Window
) -> inference_pb2.EmbedResponse:
    from inferd.server.embed import embed as work  # numpy: a daemon that only generates starts without it

    return await work(pb, serving, caller, window)


async def score(
    pb: inference_pb2.ScoreRequest, serving: Serving, caller: Caller, window: Window
) -> inference_pb2.ScoreResponse:
    """Each kind of task has its own rules; the fields of other kinds are refused."""
    serving.model.check_name(pb.model)
    match pb.WhichOneof("task"):
        case "pairs" | "rerank":
            from inferd.server.score_pairs import score_pairs as work  # numpy, as above
        case "classes":
            from inferd.server.score_pairs import classify as work
        case "continuations":
            refuse_head_fields(pb)
            from inferd.server.score_tokens import score_continuations as work
        case "labels":
            refuse_head_fields(pb)
            from inferd.server.score_tokens import score_labels as work
        case _:
            raise InvalidParameter("task is missing: pairs, rerank, continuations, labels or classes", field="task")
    return await work(pb, serving, caller, window)


def refuse_head_fields(pb: inference_pb2.ScoreRequest) -> None:
    for field in ("activation", "max_tokens"):
        if pb.HasField(field):
            raise InvalidParameter(f"{field} has no meaning for {pb.WhichOneof('task')}", field=field)
