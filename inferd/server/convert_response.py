"""OutputDelta -> inferd.v1.GenerateResponse."""

from __future__ import annotations

from collections.abc import Sequence

from inferd.front.output import ChoiceDelta, Finish, OutputDelta, Timing, Usage
from inferd.request import Request
from inferd.server.convert_prompt import PromptText
from inferd.step import TokenLogprobs
from inferd.text.tokenizer import Tokenizer
from inferd.v1 import common_pb2, inference_pb2


class ResponseWriter:
    """Turns the deltas of one request into messages: the first carries the request id, the first with tokens the
    prompt."""

    def __init__(
        self,
        request: Request,
        output: inference_pb2.OutputOptions,
        tokenizer: Tokenizer,
        truncated: bool,
        prompt_text: PromptText | None = None,
    ) -> None:
        self._request = request
        self._prompt_text = prompt_text
        self._output = output
        self._tokenizer = tokenizer
        self._truncated = truncated
        self._named = False
        self._first = True

    def message(self, delta: OutputDelta) -> inference_pb2.GenerateResponse:
        message = inference_pb2.GenerateResponse()
        if not self._named:
            self._named = True
            message.request_id = self._request.request_id
        if delta.prefilled_tokens:
            message.prefilled_tokens = delta.prefilled_tokens
            return message
        for choice in delta.choices:
            self._add_choice(message.choices.add(), choice)
        if self._first:
            self._first = False
            self._add_prompt(message.prompt, delta)
        if delta.usage is not None:
            message.usage.CopyFrom(usage_to_pb(delta.usage))
        if delta.timing is not None:
            message.timing.CopyFrom(timing_to_pb(delta.timing))
        return message

    def _add_choice(self, pb: inference_pb2.ChoiceDelta, choice: ChoiceDelta) -> None:
        pb.index = choice.index
        pb.text = choice.text
        pb.token_ids.extend(choice.token_ids)
        if choice.logprobs:
            add_logprobs(pb.logprobs, choice.token_ids, choice.logprobs, self._bytes_from(self._output.logprobs))
        if choice.finish is not None:
            add_finish(pb.finish, choice.finish)

    def _add_prompt(self, pb: inference_pb2.PromptInfo, delta: OutputDelta) -> None:
        ids = self._request.prompt_token_ids
        pb.tokens = len(ids)
        pb.truncated = self._truncated
        if self._output.prompt_token_ids:
            pb.token_ids.extend(ids)
        if self._prompt_text is not None:
            pb.text = self._prompt_text.text
            pb.starts.extend(self._prompt_text.starts)
            pb.token_bytes.extend(self._prompt_text.token_bytes)
        if delta.prompt is None:
            return
        pb.cached_tokens = delta.prompt.cached_tokens
        if self._output.HasField("prompt_logprobs"):
            tokenizer = self._bytes_from(self._output.prompt_logprobs)
            add_logprobs(pb.logprobs, ids[1:], delta.prompt.logprobs, tokenizer)
            pb.logprobs.start_position = 1

    def _bytes_from(self, options: inference_pb2.LogprobOptions) -> Tokenizer | None:
        return self._tokenizer if options.token_bytes else None


def add_logprobs(
    pb: inference_pb2.Logprobs, ids: Sequence[int], entries: list[TokenLogprobs], tokenizer: Tokenizer | None
) -> None:
    """Parallel arrays, row-major; alternatives are the entry's list with its own length. tokenizer: for the bytes of
    the tokens, where they are wanted."""
    pb.token_ids.extend(ids)
    pb.values.extend([entry.logprob for entry in entries])
    pb.ranks.extend([entry.rank for entry in entries])
    pb.top_counts.extend([len(entry.top_token_ids) for entry in entries])
    for entry in entries:
        pb.top_token_ids.extend(entry.top_token_ids)
        pb.top_values.extend(entry.top_logprobs)
    if tokenizer is not None:
        bytes_of = tokenizer.token_bytes
        pb.token_bytes.extend([bytes_of(token_id) for token_id in ids])
        pb.top_token_bytes.extend([bytes_of(token_id) for token_id in pb.top_token_ids])


def add_finish(pb: inference_pb2.Finish, finish: Finish) -> None:
    pb.MergeFrom(
        inference_pb2.Finish(
            reason=inference_pb2.FinishReason.Name(finish.reason),  # the numbers are the same on purpose
            completion_tokens=finish.completion_tokens,
            stop_token_id=finish.stop_token_id,
            stop_string=finish.stop_string,
        )
    )


def usage_to_pb(usage: Usage) -> common_pb2.Usage:
    return common_pb2.Usage(
        prompt_tokens=usage.prompt_tokens,
        cached_prompt_tokens=usage.cached_prompt_tokens,
        completion_tokens=usage.completion_tokens,
        draft_tokens=usage.draft_tokens,
        accepted_draft_tokens=usage.accepted_draft_tokens,
    )


def timing_to_pb(timing: Timing) -> common_pb2.Timing:
    return common_pb2.Timing(
        queue_us=microseconds(timing.queue_s),
        prefill_us=microseconds(timing.prefill_s),
        decode_us=microseconds(timing.decode_s),
        total_us=microseconds(timing.total_s),
    )


def microseconds(seconds: float) -> int:
    return max(0, round(seconds * 1e6))
