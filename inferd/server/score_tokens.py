"""Score by token probabilities: log likelihoods of continuations, probabilities of label tokens."""

from __future__ import annotations

import math
import time
from functools import partial

from msgspec.structs import replace

from inferd.errors import ContextLengthExceeded, InvalidParameter
from inferd.request import CacheParams, LogprobParams, StopParams
from inferd.server.convert_prompt import (
    check_fits,
    check_prompt,
    encode_arguments,
    encode_prompt,
    prompt_bytes,
    truncate,
)
from inferd.server.convert_response import add_logprobs
from inferd.server.fields import check_count, check_token_ids
from inferd.server.inputs import Caller, Serving, check_batch, plain_request
from inferd.server.tasks import require
from inferd.server.totals import timing_of, usage_of
from inferd.server.window import Window
from inferd.step import TokenLogprobs
from inferd.text.tokenizer import Tokenizer
from inferd.v1 import common_pb2, inference_pb2, model_pb2

Item = inference_pb2.ContinuationTask.Item


async def score_continuations(
    pb: inference_pb2.ScoreRequest, serving: Serving, caller: Caller, window: Window
) -> inference_pb2.ScoreResponse:
    """The log likelihood of each continuation after its context, and whether greedy decoding would give it."""
    started, task = time.monotonic(), pb.continuations
    require(serving.model, model_pb2.TASK_SCORE_CONTINUATIONS)
    check_batch("continuations.items", len(task.items), serving)
    if pb.truncation == common_pb2.TRUNCATION_KEEP_START:
        raise InvalidParameter(
            "truncation must not cut the continuation: KEEP_END cuts the context", field="truncation"
        )
    tokenizer = serving.model.tokenizer
    for index, item in enumerate(task.items):
        check_item(f"continuations.items[{index}]", item, serving)
    work = partial(split_items, list(task.items), tokenizer)
    splits = await serving.pool.run(pb.ByteSize(), work)
    inputs = [cut_context(ids, count, pb.truncation, serving.max_context_tokens) for ids, count in splits]
    requests = [
        replace(
            plain_request(serving, caller, index, ids, StopParams(max_tokens=0)),
            prompt_logprobs=LogprobParams(),
            cache=CacheParams(read=False),
        )
        for index, ids in enumerate(inputs)
    ]
    deltas = await window.run_all(requests)
    response = inference_pb2.ScoreResponse(columns=1, usage=usage_of(deltas), timing=timing_of(deltas, started))
    for ids, (_, count), delta in zip(inputs, splits, deltas, strict=True):
        assert delta.prompt is not None
        entries = delta.prompt.logprobs[-count:]
        response.scores.append(math.fsum(entry.logprob for entry in entries))
        response.greedy.append(all(entry.rank == 1 for entry in entries))
        if task.token_details:
            details = response.details.add(start_position=len(ids) - count)
            add_logprobs(details, ids[-count:], entries, None)
    return response


def check_item(field: str, item: Item, serving: Serving) -> None:
    """An empty context is the beginning of a text, where the vocabulary has a token for that."""
    check_prompt(f"{field}.continuation", item.continuation, serving.vocab_size)
    is_start = item.context.WhichOneof("kind") == "text" and not item.context.text
    if not (is_start and serving.model.tokenizer.adds_bos):
        check_prompt(f"{field}.context", item.context, serving.vocab_size)


def split_items(items: list[Item], tokenizer: Tokenizer) -> list[tuple[list[int], int]]:
    return [split_item(item, tokenizer) for item in items]


def split_item(item: Item, tokenizer: Tokenizer) -> tuple[list[int], int]:
    """(token ids of context and continuation, how many of them are the continuation's).

    Two texts are tokenized as one: a token that spans both belongs to the continuation. Anything else is tokenized
    apart, the continuation without special tokens. What the tokenizer puts behind a text is left out.
    """
    context, continuation = item.context, item.continuation
    if context.WhichOneof("kind") == continuation.WhichOneof("kind") == "text":
        add = context.add_special_tokens if context.HasField("add_special_tokens") else None
        before = without(tokenizer.encode(context.text, add), tokenizer.suffix)
        ids = without(tokenizer.encode(context.text + continuation.text, add), tokenizer.suffix)
        shared = 0
        while shared < min(len(before), len(ids) - 1) and before[shared] == ids[shared]:
            shared += 1
    else:
        before = without(encode_prompt(context, tokenizer), tokenizer.suffix)
        ids = [*before, *continuation_ids(continuation, tokenizer)]
        shared = len(before)
    if not 0 < shared < len(ids):
        raise InvalidParameter("an item has no context token before its continuation", field="continuations.items")
    return ids, len(ids) - shared


def continuation_ids(prompt: common_pb2.Prompt, tokenizer: Tokenizer) -> list[int]:
    if prompt.WhichOneof("kind") == "token_ids":
        return list(prompt.token_ids.ids)
    return tokenizer.encode(encode_arguments(prompt)[0], False)


def without(ids: list[int], suffix: tuple[int, ...]) -> list[int]:
    return ids[: -len(suffix)] if suffix and tuple(ids[-len(suffix) :]) == suffix else ids


def cut_context(ids: list[int], count: int, truncation: int, context: int) -> list[int]:
    """At most `context` ids; the last `count`, and one before them, are not to be cut."""
    if count >= context:
        raise ContextLengthExceeded(
            f"a continuation has {count} tokens, the context of {context} leaves room for {context - 1}",
            field="continuations.items",
            metadata={"prompt_tokens": str(count), "max_context_tokens": str(context)},
        )
    return fitting(ids, truncation, context, 0)


def fitting(ids: list[int], truncation: int, context: int, output_tokens: int) -> list[int]:
    """The ids that are read, with room for the output. Raises ContextLengthExceeded."""
    kept = truncate(ids, truncation, context - output_tokens)
    check_fits(len(kept), output_tokens, context)
    return kept


async def score_labels(
    pb: inference_pb2.ScoreRequest, serving: Serving, caller: Caller, window: Window
) -> inference_pb2.ScoreResponse:
    """The probability of each label token after each prompt."""
    started, task = time.monotonic(), pb.labels
    require(serving.model, model_pb2.TASK_SCORE_LABELS)
    check_labels(task, serving)
    tokenizer, context = serving.model.tokenizer, serving.max_context_tokens
    size = sum(map(prompt_bytes, task.prompts))
    inputs = await serving.pool.run(size, lambda: [encode_prompt(prompt, tokenizer) for prompt in task.prompts])
    wanted = tuple(dict.fromkeys(task.label_token_ids))
    kept = [fitting(ids, pb.truncation, context, 1) for ids in inputs]
    requests = [
        replace(
            plain_request(serving, caller, index, ids, StopParams(max_tokens=1)),
            logprobs=LogprobParams(token_ids=wanted),
        )
        for index, ids in enumerate(kept)
    ]
    deltas = await window.run_all(requests)
    scores: list[float] = []
    for delta in deltas:
        scores += label_scores(delta.choices[0].logprobs[0], list(task.label_token_ids), softmax=task.apply_softmax)
    return inference_pb2.ScoreResponse(
        scores=scores, columns=len(task.label_token_ids), usage=usage_of(deltas), timing=timing_of(deltas, started)
    )


def check_labels(task: inference_pb2.LabelTask, serving: Serving) -> None:
    check_batch("labels.prompts", len(task.prompts), serving)
    for index, prompt in enumerate(task.prompts):
        check_prompt(f"labels.prompts[{index}]", prompt, serving.vocab_size)
    if not task.label_token_ids:
        raise InvalidParameter("labels.label_token_ids is empty", field="labels.label_token_ids")
    check_count("labels.label_token_ids", task.label_token_ids, serving.config.server.limits.max_logprob_token_ids)
    check_token_ids("labels.label_token_ids", task.label_token_ids, serving.vocab_size)


def label_scores(entry: TokenLogprobs, labels: list[int], *, softmax: bool) -> list[float]:
    """Probability of each label among the vocabulary, or among the labels."""
    logprobs = dict(zip(entry.top_token_ids, entry.top_logprobs, strict=True))
    values = [logprobs[label] for label in labels]
    if not softmax:
        return [math.exp(value) for value in values]
    largest = max(values)
    weights = [math.exp(value - largest) for value in values]
    return [weight / sum(weights) for weight in weights]
