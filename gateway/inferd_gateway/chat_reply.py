"""inferd.v1 deltas as chat completions, whole or in chunks."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import Any

from inferd.v1 import common_pb2
from inferd.v1 import inference_pb2 as pb
from inferd_gateway.choice_parser import ChoiceParser, ParsePlan
from inferd_gateway.logprobs import TokenNames, chat_logprobs, prompt_logprobs
from inferd_gateway.parsers.pieces import Arguments, CallStart, Content, Piece, Reasoning
from inferd_gateway.replies import DONE, ChoiceText, Head, TextChunks, finish_reason, stop_reason, usage_of
from inferd_gateway.schemas.chat import ChatRequest


class ChatStream:
    """The events of one streamed chat completion."""

    def __init__(self, head: Head, body: ChatRequest, plan: ParsePlan) -> None:
        self._head = head
        self._plan = plan
        self._names = TokenNames(as_ids=bool(body.return_tokens_as_token_ids))
        self._token_ids = bool(body.return_token_ids)
        options = body.stream_options
        self._with_usage = bool(options and options.include_usage)
        self._continuous = bool(self._with_usage and options and options.continuous_usage_stats)
        self._parsers: dict[int, ChoiceParser] = {}
        self._usage: common_pb2.Usage | None = None
        self._completed = 0  # tokens, before the message at hand
        self._logprobs = bool(body.logprobs)
        # Most pieces are text that nothing comes with.
        self._texts = {kind: TextChunks(head, partial(self._text_chunk, kind)) for kind in (Content, Reasoning)}

    def events(self, message: pb.GenerateResponse) -> bytes:
        """All events of one message, to be sent at once."""
        if message.HasField("usage"):
            self._completed = self._usage.completion_tokens if self._usage is not None else 0
            self._usage = message.usage
        return b"".join([self._events(message, delta) for delta in message.choices[:]])

    def _events(self, message: pb.GenerateResponse, delta: pb.ChoiceDelta) -> bytes:
        index = delta.index
        opening = b"" if index in self._parsers else self._open(index, message)
        parser = self._parsers[index]
        parser.count(delta.token_ids)
        pieces = parser.push(delta.text)
        if not delta.HasField("finish"):
            return opening + self._deltas(delta, pieces)
        told = self._deltas(delta, pieces + parser.finish())
        reason = chat_finish(delta.finish, parser)
        return opening + told + self._chunk(index, {}, finish_reason=reason, stop_reason=stop_reason(delta.finish))

    def _open(self, index: int, message: pb.GenerateResponse) -> bytes:
        self._parsers[index] = self._plan.parser()
        chunk = self._rest(index, {"role": "assistant", "content": ""})
        if chunk.get("usage"):
            # It tells of nothing that was generated: what came with it is in the chunks that follow.
            before = common_pb2.Usage()
            before.CopyFrom(message.usage)
            before.completion_tokens = self._completed
            chunk["usage"] = usage_of([before], 0 if self._plan.reasoning is not None else None)
        if self._token_ids:
            chunk["prompt_token_ids"] = list(message.prompt.token_ids)
        return self._head.chunk(chunk)

    def end(self) -> bytes:
        if not self._with_usage or self._usage is None:
            return DONE
        return self._head.chunk({"choices": [], "usage": self._usage_now()}) + DONE

    def _deltas(self, delta: pb.ChoiceDelta, pieces: list[Piece]) -> bytes:
        """One chunk a piece; what is told per token goes with the first."""
        extra = self._extra(delta) if self._logprobs or self._token_ids else {}
        if extra and not pieces:
            pieces = [Content("")]
        chunks = []
        for piece in pieces:
            chunks.append(self._piece(delta.index, piece, extra))
            extra = {}
        return b"".join(chunks)

    def _extra(self, delta: pb.ChoiceDelta) -> dict[str, Any]:
        extra: dict[str, Any] = {}
        if delta.HasField("logprobs"):
            extra["logprobs"] = {"content": chat_logprobs(delta.logprobs, self._names), "refusal": None}
        if self._token_ids and delta.token_ids:
            extra["token_ids"] = list(delta.token_ids)
        return extra

    def _piece(self, index: int, piece: Piece, extra: dict[str, Any]) -> bytes:
        if isinstance(piece, Content | Reasoning) and not extra and not self._continuous:
            return self._texts[type(piece)].event(index, piece.text)
        return self._chunk(index, delta_of(piece), **extra)

    def _text_chunk(self, kind: type[Content | Reasoning], index: int, text: str) -> dict[str, Any]:
        return self._rest(index, delta_of(kind(text)))

    def _usage_now(self) -> dict[str, Any] | None:
        return None if self._usage is None else usage_of([self._usage], reasoning_tokens(self._plan, self._parsers))

    def _chunk(self, index: int, delta: dict[str, Any], **choice: Any) -> bytes:
        return self._head.chunk(self._rest(index, delta, **choice))

    def _rest(self, index: int, delta: dict[str, Any], **choice: Any) -> dict[str, Any]:
        fields = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **choice}
        chunk: dict[str, Any] = {"choices": [fields]}
        if self._with_usage:
            chunk["usage"] = self._usage_now() if self._continuous else None
        return chunk


class ChatWhole:
    """One chat completion that is sent whole."""

    def __init__(self, head: Head, body: ChatRequest, plan: ParsePlan) -> None:
        self._head = head
        self._plan = plan
        # Made as the choices come: how many there are is the daemon's to allow.
        self._parsers: defaultdict[int, ChoiceParser] = defaultdict(plan.parser)
        self._names = TokenNames(as_ids=bool(body.return_tokens_as_token_ids))
        self._body = body
        self._choices: defaultdict[int, ChoiceText] = defaultdict(ChoiceText)
        self._prompt = pb.PromptInfo()
        self._usage = common_pb2.Usage()

    def add(self, message: pb.GenerateResponse) -> None:
        if message.HasField("prompt"):
            self._prompt = message.prompt
        if message.HasField("usage"):
            self._usage = message.usage
        for delta in message.choices:
            choice = self._choices[delta.index]
            parser = self._parsers[delta.index]
            parser.count(delta.token_ids)
            choice.add(delta, delta.text)
            if delta.HasField("logprobs"):
                choice.logprobs += chat_logprobs(delta.logprobs, self._names)

    def reply(self) -> dict[str, Any]:
        reply = {
            **self._head.fields(),
            "choices": [self._choice(index, self._choices[index]) for index in sorted(self._choices)],
            "usage": usage_of([self._usage], reasoning_tokens(self._plan, self._parsers)),
        }
        if self._body.return_token_ids:
            reply["prompt_token_ids"] = list(self._prompt.token_ids)
        if self._body.prompt_logprobs is not None:
            reply["prompt_logprobs"] = prompt_logprobs(self._prompt.logprobs, self._names)
        return reply

    def _choice(self, index: int, choice: ChoiceText) -> dict[str, Any]:
        assert choice.finish is not None
        parser = self._parsers[index]
        message = message_of(parser.push(choice.text) + parser.finish())
        fields: dict[str, Any] = {
            "index": index,
            "message": message,
            "logprobs": {"content": choice.logprobs, "refusal": None} if self._body.logprobs else None,
            "finish_reason": chat_finish(choice.finish, parser),
            "stop_reason": stop_reason(choice.finish),
        }
        if self._body.return_token_ids:
            fields["token_ids"] = choice.token_ids
        return fields


def delta_of(piece: Piece) -> dict[str, Any]:
    match piece:
        case Reasoning(text):
            return {"reasoning": text}
        case CallStart(name, index, call_id):
            function = {"name": name, "arguments": ""}
            return {"tool_calls": [{"index": index, "id": call_id, "type": "function", "function": function}]}
        case Arguments(text, index):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
    return {"content": piece.text}


def message_of(pieces: list[Piece]) -> dict[str, Any]:
    """`content` is null beside tool calls when there is none."""
    arguments = arguments_of(pieces)
    calls = [
        {
            "id": piece.call_id,
            "type": "function",
            "function": {"name": piece.name, "arguments": arguments.get(piece.index, "")},
        }
        for piece in pieces
        if isinstance(piece, CallStart)
    ]
    content = "".join(piece.text for piece in pieces if isinstance(piece, Content))
    reasoning = "".join(piece.text for piece in pieces if isinstance(piece, Reasoning))
    message: dict[str, Any] = {"role": "assistant", "content": content or (None if calls else ""), "refusal": None}
    if reasoning:
        message["reasoning"] = reasoning
    if calls:
        message["tool_calls"] = calls
    return message


def arguments_of(pieces: list[Piece]) -> dict[int, str]:
    """The JSON text of each call's arguments."""
    parts: dict[int, list[str]] = {}
    for piece in pieces:
        if isinstance(piece, Arguments):
            parts.setdefault(piece.index, []).append(piece.text)
    return {index: "".join(texts) for index, texts in parts.items()}


def chat_finish(finish: pb.Finish, parser: ChoiceParser) -> str:
    reason = finish_reason(finish)
    return "tool_calls" if reason == "stop" and parser.calls else reason


def reasoning_tokens(plan: ParsePlan, parsers: dict[int, ChoiceParser]) -> int | None:
    """Over all choices; None when nothing is split, or the tokens are not known."""
    counts = [parser.reasoning_tokens for parser in parsers.values()]
    return None if plan.reasoning is None or None in counts else sum(filter(None, counts))
