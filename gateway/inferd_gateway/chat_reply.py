"""inferd.v1 deltas as chat completions, whole or in chunks."""

from __future__ import annotations

from typing import Any

from inferd.v1 import common_pb2
from inferd.v1 import inference_pb2 as pb
from inferd_gateway.logprobs import TokenNames, chat_logprobs, prompt_logprobs
from inferd_gateway.replies import DONE, ChoiceText, Head, event, finish_reason, stop_reason, usage_of
from inferd_gateway.schemas.chat import ChatRequest


class ChatStream:
    """The events of one streamed chat completion."""

    def __init__(self, head: Head, body: ChatRequest) -> None:
        self._head = head.fields()
        self._names = TokenNames(as_ids=bool(body.return_tokens_as_token_ids))
        self._token_ids = bool(body.return_token_ids)
        options = body.stream_options
        self._with_usage = bool(options and options.include_usage)
        self._continuous = bool(self._with_usage and options and options.continuous_usage_stats)
        self._started: set[int] = set()
        self._usage: common_pb2.Usage | None = None

    def events(self, message: pb.GenerateResponse) -> bytes:
        """All events of one message, to be sent at once."""
        if message.HasField("usage"):
            self._usage = message.usage
        out = []
        for delta in message.choices:
            if delta.index not in self._started:
                self._started.add(delta.index)
                out.append(self._chunk(delta.index, {"role": "assistant", "content": ""}, **self._prompt_ids(message)))
            if delta.text or delta.HasField("logprobs") or (self._token_ids and delta.token_ids):
                out.append(self._content(delta))
            if delta.HasField("finish"):
                reason = finish_reason(delta.finish)
                out.append(self._chunk(delta.index, {}, finish_reason=reason, stop_reason=stop_reason(delta.finish)))
        return b"".join(out)

    def end(self) -> bytes:
        if not self._with_usage or self._usage is None:
            return DONE
        return event({**self._head, "choices": [], "usage": usage_of([self._usage])}) + DONE

    def _content(self, delta: pb.ChoiceDelta) -> bytes:
        logprobs = None
        if delta.HasField("logprobs"):
            logprobs = {"content": chat_logprobs(delta.logprobs, self._names), "refusal": None}
        extra = {"token_ids": list(delta.token_ids)} if self._token_ids else {}
        return self._chunk(delta.index, {"content": delta.text}, logprobs=logprobs, **extra)

    def _prompt_ids(self, message: pb.GenerateResponse) -> dict[str, Any]:
        return {"prompt_token_ids": list(message.prompt.token_ids)} if self._token_ids else {}

    def _chunk(
        self, index: int, delta: dict[str, Any], *, prompt_token_ids: list[int] | None = None, **choice: Any
    ) -> bytes:
        fields = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **choice}
        chunk = {**self._head, "choices": [fields]}
        if prompt_token_ids is not None:
            chunk["prompt_token_ids"] = prompt_token_ids
        if self._with_usage:
            chunk["usage"] = usage_of([self._usage]) if self._continuous and self._usage is not None else None
        return event(chunk)


class ChatWhole:
    """One chat completion that is sent whole."""

    def __init__(self, head: Head, body: ChatRequest) -> None:
        self._head = head
        self._names = TokenNames(as_ids=bool(body.return_tokens_as_token_ids))
        self._body = body
        self._choices = [ChoiceText() for _ in range(body.n or 1)]
        self._prompt = pb.PromptInfo()
        self._usage = common_pb2.Usage()

    def add(self, message: pb.GenerateResponse) -> None:
        if message.HasField("prompt"):
            self._prompt = message.prompt
        if message.HasField("usage"):
            self._usage = message.usage
        for delta in message.choices:
            choice = self._choices[delta.index]
            choice.add(delta, delta.text)
            if delta.HasField("logprobs"):
                choice.logprobs += chat_logprobs(delta.logprobs, self._names)

    def reply(self) -> dict[str, Any]:
        reply = {
            **self._head.fields(),
            "choices": [self._choice(index, choice) for index, choice in enumerate(self._choices)],
            "usage": usage_of([self._usage]),
        }
        if self._body.return_token_ids:
            reply["prompt_token_ids"] = list(self._prompt.token_ids)
        if self._body.prompt_logprobs is not None:
            reply["prompt_logprobs"] = prompt_logprobs(self._prompt.logprobs, self._names)
        return reply

    def _choice(self, index: int, choice: ChoiceText) -> dict[str, Any]:
        assert choice.finish is not None
        fields: dict[str, Any] = {
            "index": index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": {"content": choice.logprobs, "refusal": None} if self._body.logprobs else None,
            "finish_reason": finish_reason(choice.finish),
            "stop_reason": stop_reason(choice.finish),
        }
        if self._body.return_token_ids:
            fields["token_ids"] = choice.token_ids
        return fields
