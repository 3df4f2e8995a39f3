"""inferd.v1 deltas as text completions, whole or in chunks, for one or many prompts."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from inferd.v1 import common_pb2
from inferd.v1 import inference_pb2 as pb
from inferd_gateway.logprobs import CompletionLogprobs, TokenNames, join_columns, prompt_logprobs
from inferd_gateway.replies import DONE, ChoiceText, Head, TextChunks, finish_reason, stop_reason, usage_of
from inferd_gateway.schemas.completions import CompletionRequest


class CompletionReply:
    """Builds the choices of one call; choice i of prompt p has the index p * n + i."""

    def __init__(self, head: Head, body: CompletionRequest, prompts: int, hidden: frozenset[int]) -> None:
        self._head = head
        self._body = body
        self._n = body.n or 1
        names = TokenNames(as_ids=bool(body.return_tokens_as_token_ids))
        self._names = names
        # Made as the choices come: how many there are is the daemon's to allow.
        self._columns: defaultdict[int, CompletionLogprobs] = defaultdict(lambda: CompletionLogprobs(names, hidden))
        self._prompts: list[pb.PromptInfo] = [pb.PromptInfo() for _ in range(prompts)]
        self._usages: dict[int, common_pb2.Usage] = {}
        options = body.stream_options
        self._with_usage = bool(options and options.include_usage)
        self._continuous = bool(self._with_usage and options and options.continuous_usage_stats)
        self._started: set[int] = set()
        # Most deltas bring text and nothing else; unless the caller asked for something that comes with each.
        asked = body.echo or body.return_token_ids or self._continuous or body.logprobs is not None
        self._texts = None if asked else TextChunks(head, self._text_chunk)

    def deltas(self, prompt: int, message: pb.GenerateResponse) -> list[tuple[int, pb.ChoiceDelta, dict[str, Any]]]:
        """(choice index, delta, its text and logprobs with the echo in front of the first)."""
        self._note(prompt, message)
        return [self._fields(prompt, delta) for delta in message.choices]

    def _note(self, prompt: int, message: pb.GenerateResponse) -> None:
        if message.HasField("prompt"):
            self._prompts[prompt] = message.prompt
        if message.HasField("usage"):
            self._usages[prompt] = message.usage

    def _fields(self, prompt: int, delta: pb.ChoiceDelta) -> tuple[int, pb.ChoiceDelta, dict[str, Any]]:
        index = prompt * self._n + delta.index
        columns, text, parts = self._columns[index], delta.text, []
        if index not in self._started and self._body.echo:
            info = self._prompts[prompt]
            text = info.text + text
            if self._body.logprobs is not None:
                parts.append(columns.prompt_columns(info))
        self._started.add(index)
        if delta.HasField("logprobs"):
            parts.append(columns.columns(delta.logprobs))
        return index, delta, {"text": text, "logprobs": join_columns(parts) if parts else None}

    def events(self, prompt: int, message: pb.GenerateResponse) -> bytes:
        """All events of one message, to be sent at once."""
        first = not self._prompts[prompt].tokens
        self._note(prompt, message)
        return b"".join([self._event(first, prompt, delta) for delta in message.choices[:]])

    def _event(self, first: bool, prompt: int, delta: pb.ChoiceDelta) -> bytes:
        """Empty where there is nothing to tell."""
        if self._texts is not None and not delta.HasField("finish"):
            text = delta.text
            return self._texts.event(prompt * self._n + delta.index, text) if text else b""
        index, _, fields = self._fields(prompt, delta)
        return self._chunk(first, prompt, index, delta, fields) if self._worth(delta, fields) else b""

    def _worth(self, delta: pb.ChoiceDelta, fields: dict[str, Any]) -> bool:
        ids = self._body.return_token_ids and delta.token_ids
        return bool(fields["text"] or fields["logprobs"] or delta.HasField("finish") or ids)

    def _chunk(self, first: bool, prompt: int, index: int, delta: pb.ChoiceDelta, fields: dict[str, Any]) -> bytes:
        choice: dict[str, Any] = {"index": index, **fields, "finish_reason": None}
        if delta.HasField("finish"):
            choice |= {"finish_reason": finish_reason(delta.finish), "stop_reason": stop_reason(delta.finish)}
        if self._body.return_token_ids:
            choice["token_ids"] = list(delta.token_ids)
            if first:
                choice["prompt_token_ids"] = list(self._prompts[prompt].token_ids)
        return self._head.chunk(self._rest(choice))

    def _text_chunk(self, index: int, text: str) -> dict[str, Any]:
        return self._rest({"index": index, "text": text, "logprobs": None, "finish_reason": None})

    def _rest(self, choice: dict[str, Any]) -> dict[str, Any]:
        chunk: dict[str, Any] = {"choices": [choice]}
        if self._with_usage:
            chunk["usage"] = usage_of(list(self._usages.values())) if self._continuous and self._usages else None
        return chunk

    def end(self) -> bytes:
        if not self._with_usage:
            return DONE
        return self._head.chunk({"choices": [], "usage": usage_of(list(self._usages.values()))}) + DONE

    def whole(self, messages: list[tuple[int, pb.GenerateResponse]]) -> dict[str, Any]:
        """The reply to a call that is not streamed."""
        choices: defaultdict[int, ChoiceText] = defaultdict(ChoiceText)
        for prompt, message in messages:
            for index, delta, fields in self.deltas(prompt, message):
                choices[index].add(delta, fields["text"])
                if fields["logprobs"]:
                    choices[index].logprobs.append(fields["logprobs"])
        return {
            **self._head.fields(),
            "choices": [self._whole_choice(index, choices[index]) for index in sorted(choices)],
            "usage": usage_of(list(self._usages.values())),
        }

    def _whole_choice(self, index: int, choice: ChoiceText) -> dict[str, Any]:
        assert choice.finish is not None
        prompt = self._prompts[index // self._n]
        fields: dict[str, Any] = {
            "index": index,
            "text": choice.text,
            "logprobs": join_columns(choice.logprobs) if self._body.logprobs is not None else None,
            "finish_reason": finish_reason(choice.finish),
            "stop_reason": stop_reason(choice.finish),
        }
        if self._body.prompt_logprobs is not None:
            fields["prompt_logprobs"] = prompt_logprobs(prompt.logprobs, self._names)
        if self._body.return_token_ids:
            fields |= {"token_ids": choice.token_ids, "prompt_token_ids": list(prompt.token_ids)}
        return fields
