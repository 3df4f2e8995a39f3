"""inferd.v1 deltas as an Anthropic message, and as the events that build it."""

from __future__ import annotations

from typing import Any

from inferd.v1 import inference_pb2 as pb
from inferd_gateway import strict_json
from inferd_gateway.choice_parser import ParsePlan
from inferd_gateway.parsers.pieces import Arguments, CallStart, Content, Piece, Reasoning
from inferd_gateway.replies import finish_reason, named_event


class OpenBlock:
    """The content block that is being written."""

    def __init__(self, kind: str, index: int, fields: dict[str, Any]) -> None:
        self.kind = kind
        self.index = index
        self.fields = fields
        self.texts: list[str] = []

    def done(self) -> dict[str, Any]:
        text = "".join(self.texts)
        if self.kind == "tool_use":
            return {**self.fields, "input": object_of(text)}
        return {**self.fields, self.kind: text}


class MessageReply:
    """One message. `events` and `end` give what is streamed; `message` is the whole."""

    def __init__(self, reply_id: str, model: str, plan: ParsePlan) -> None:
        self._head = {"id": reply_id, "type": "message", "role": "assistant", "model": model}
        self._parser = plan.parser()
        self._content: list[dict[str, Any]] = []
        self._block: OpenBlock | None = None
        self._started = False
        self._prompt_tokens = self._cached_tokens = self._output_tokens = 0
        self._stop: dict[str, str | None] = {"stop_reason": None, "stop_sequence": None}

    def events(self, message: pb.GenerateResponse) -> bytes:
        """All events of one message of the daemon, to be sent at once."""
        if message.HasField("prompt"):
            self._prompt_tokens, self._cached_tokens = message.prompt.tokens, message.prompt.cached_tokens
        out = [] if self._started else [named_event("message_start", {"message": self.message()})]
        self._started = True
        if message.HasField("usage"):
            self._output_tokens = message.usage.completion_tokens
        for delta in message.choices:
            out += [self._piece(piece) for piece in self._parser.push(delta.text)]
            if delta.HasField("finish"):
                out += [self._piece(piece) for piece in self._parser.finish()]
                self._stop = stop_of(delta.finish, called=bool(self._parser.calls))
        return b"".join(out)

    def end(self) -> bytes:
        closed = self._close()
        told = named_event("message_delta", {"delta": self._stop, "usage": self._usage()})
        return closed + told + named_event("message_stop", {})

    def message(self) -> dict[str, Any]:
        return {**self._head, "content": list(self._content), **self._stop, "usage": self._usage()}

    def _usage(self) -> dict[str, int]:
        """Cached tokens are not among the input tokens here."""
        return {
            "input_tokens": self._prompt_tokens - self._cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": self._cached_tokens,
            "output_tokens": self._output_tokens,
        }

    def _piece(self, piece: Piece) -> bytes:
        match piece:
            case CallStart(name, _, call_id):
                return self._open("tool_use", {"type": "tool_use", "id": f"toolu_{call_id}", "name": name, "input": {}})
            case Arguments(text):
                return self._delta({"type": "input_json_delta", "partial_json": text}, text)
            case Reasoning(text):
                opened = self._open_unless("thinking", {"type": "thinking", "thinking": "", "signature": ""})
                return opened + self._delta({"type": "thinking_delta", "thinking": text}, text)
            case Content(text):
                opened = self._open_unless("text", {"type": "text", "text": ""})
                return opened + self._delta({"type": "text_delta", "text": text}, text)

    def _open_unless(self, kind: str, fields: dict[str, Any]) -> bytes:
        return b"" if self._block is not None and self._block.kind == kind else self._open(kind, fields)

    def _open(self, kind: str, fields: dict[str, Any]) -> bytes:
        """Closes the block before it."""
        closed = self._close()
        self._block = OpenBlock(kind, len(self._content), fields)
        started = {"index": self._block.index, "content_block": fields}
        return closed + named_event("content_block_start", started)

    def _delta(self, delta: dict[str, Any], text: str) -> bytes:
        assert self._block is not None
        self._block.texts.append(text)
        return named_event("content_block_delta", {"index": self._block.index, "delta": delta})

    def _close(self) -> bytes:
        block, self._block = self._block, None
        if block is None:
            return b""
        self._content.append(block.done())
        return named_event("content_block_stop", {"index": block.index})


def stop_of(finish: pb.Finish, *, called: bool) -> dict[str, str | None]:
    reason = finish_reason(finish)
    if reason == "length":
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    if finish.reason == pb.FINISH_REASON_STOP_STRING:
        return {"stop_reason": "stop_sequence", "stop_sequence": finish.stop_string}
    return {"stop_reason": "tool_use" if called else "end_turn", "stop_sequence": None}


def object_of(text: str) -> Any:
    """The arguments as an object. A call that was cut off, or is no JSON, has none."""
    try:
        value = strict_json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
