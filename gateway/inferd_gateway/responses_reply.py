"""inferd.v1 deltas as a Response object, and as the events that build it."""

from __future__ import annotations

import time
import uuid
from typing import Any

from inferd.v1 import common_pb2
from inferd.v1 import inference_pb2 as pb
from inferd_gateway.choice_parser import ParsePlan
from inferd_gateway.errors import ApiError
from inferd_gateway.parsers.pieces import Arguments, CallStart, Content, Piece, Reasoning
from inferd_gateway.replies import finish_reason, named_event
from inferd_gateway.schemas.responses import ResponsesRequest

PART_TYPES = {"message": "output_text", "reasoning": "reasoning_text"}
TEXT_EVENTS = {"message": "response.output_text", "reasoning": "response.reasoning_text"}


class OpenItem:
    """The output item that is being written."""

    def __init__(self, kind: str, index: int, fields: dict[str, Any]) -> None:
        self.kind = kind
        self.index = index
        self.fields = fields
        self.texts: list[str] = []

    @property
    def place(self) -> dict[str, Any]:
        place = {"item_id": self.fields["id"], "output_index": self.index}
        return place if self.kind == "function_call" else {**place, "content_index": 0}

    def part(self, text: str) -> dict[str, Any]:
        part: dict[str, Any] = {"type": PART_TYPES[self.kind], "text": text}
        return part | {"annotations": [], "logprobs": []} if self.kind == "message" else part


class ResponseReply:
    """One response. `events` and `end` give what is streamed; `response` is the object as it stands."""

    def __init__(self, reply_id: str, model: str, body: ResponsesRequest, plan: ParsePlan) -> None:
        self._head = head_of(reply_id, model, body)
        self._parser = plan.parser()
        self._output: list[dict[str, Any]] = []
        self._item: OpenItem | None = None
        self._sequence = 0
        self._usage: common_pb2.Usage | None = None
        self._status = "in_progress"
        self._error: ApiError | None = None

    def events(self, message: pb.GenerateResponse) -> bytes:
        """All events of one message, to be sent at once."""
        if message.HasField("usage"):
            self._usage = message.usage
        out = [self._start()]
        for delta in message.choices:
            self._parser.count(delta.token_ids)
            out += [self._piece(piece) for piece in self._parser.push(delta.text)]
            if delta.HasField("finish"):
                out += [self._piece(piece) for piece in self._parser.finish()]
                self._status = "incomplete" if finish_reason(delta.finish) == "length" else "completed"
        return b"".join(out)

    def end(self) -> bytes:
        closed = self._close()
        return closed + self._event(f"response.{self._status}", response=self.response())

    def fail(self, error: ApiError) -> bytes:
        """What ends a stream that has begun."""
        begun = self._start()
        self._status, self._error = "failed", error
        told = self._event("error", code=error.code, message=error.message, param=error.param)
        return begun + told + self._event("response.failed", response=self.response())

    def response(self) -> dict[str, Any]:
        done = self._status != "in_progress"
        error = None if self._error is None else {"code": "server_error", "message": self._error.message}
        incomplete = {"reason": "max_output_tokens"} if self._status == "incomplete" else None
        return {
            **self._head,
            "status": self._status,
            "completed_at": int(time.time()) if self._status == "completed" else None,
            "error": error,
            "incomplete_details": incomplete,
            "output": list(self._output),
            "usage": self._usage_fields() if done and self._usage is not None else None,
        }

    def _usage_fields(self) -> dict[str, Any]:
        assert self._usage is not None
        usage, reasoning = self._usage, self._parser.reasoning_tokens
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_prompt_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": reasoning or 0},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }

    def _start(self) -> bytes:
        if self._sequence:
            return b""
        created = self._event("response.created", response=self.response())
        return created + self._event("response.in_progress", response=self.response())

    def _piece(self, piece: Piece) -> bytes:
        match piece:
            case Reasoning(text) | Content(text):
                kind = "reasoning" if isinstance(piece, Reasoning) else "message"
                opened = b"" if self._item is not None and self._item.kind == kind else self._open(kind)
                extra: dict[str, Any] = {"logprobs": []} if kind == "message" else {}
                return opened + self._text(f"{TEXT_EVENTS[kind]}.delta", text, **extra)
            case CallStart(name, _, call_id):
                return self._open("function_call", name=name, call_id=call_id)
            case Arguments(text):
                return self._text("response.function_call_arguments.delta", text)

    def _text(self, name: str, text: str, **extra: Any) -> bytes:
        assert self._item is not None
        self._item.texts.append(text)
        return self._event(name, **self._item.place, delta=text, **extra)

    def _open(self, kind: str, **fields: Any) -> bytes:
        """Closes the item before it."""
        closed = self._close()
        shapes: dict[str, dict[str, Any]] = {
            "message": {"id": new_id("msg"), "role": "assistant", "content": []},
            "reasoning": {"id": new_id("rs"), "summary": [], "content": []},
            "function_call": {"id": new_id("fc"), "arguments": "", **fields},
        }
        item = OpenItem(kind, len(self._output), {"type": kind, "status": "in_progress", **shapes[kind]})
        self._item = item
        added = self._event("response.output_item.added", output_index=item.index, item=item.fields)
        if kind != "function_call":
            added += self._event("response.content_part.added", **item.place, part=item.part(""))
        return closed + added

    def _close(self) -> bytes:
        item, self._item = self._item, None
        if item is None:
            return b""
        text = "".join(item.texts)
        item.fields["status"] = "incomplete" if self._status == "incomplete" else "completed"
        if item.kind == "function_call":
            item.fields["arguments"] = text
            out = self._event(
                "response.function_call_arguments.done", **item.place, name=item.fields["name"], arguments=text
            )
        else:
            item.fields["content"] = [item.part(text)]
            extra: dict[str, Any] = {"logprobs": []} if item.kind == "message" else {}
            out = self._event(f"{TEXT_EVENTS[item.kind]}.done", **item.place, text=text, **extra)
            out += self._event("response.content_part.done", **item.place, part=item.part(text))
        self._output.append(item.fields)
        return out + self._event("response.output_item.done", output_index=item.index, item=item.fields)

    def _event(self, name: str, /, **fields: Any) -> bytes:
        self._sequence += 1
        return named_event(name, {"sequence_number": self._sequence - 1, **fields})


def head_of(reply_id: str, model: str, body: ResponsesRequest) -> dict[str, Any]:
    """What the caller asked for, told back as the API does; what was not asked for has the API's defaults."""

    def dumped(value: Any) -> Any:
        return value.model_dump(by_alias=True, exclude_none=True) if hasattr(value, "model_dump") else value

    text = dumped(body.text) if body.text else {}
    return {
        "id": reply_id,
        "object": "response",
        "created_at": int(time.time()),
        "background": False,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": model,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {
            "effort": body.reasoning.effort if body.reasoning else None,
            "summary": body.reasoning.summary if body.reasoning else None,
        },
        "service_tier": "default",
        "store": False,
        "temperature": body.temperature,
        "text": {"format": {"type": "text"}, **text},
        "tool_choice": dumped(body.tool_choice) or "auto",
        "tools": [
            {"description": None, "parameters": None, "strict": None, **dumped(tool)} for tool in body.tools or []
        ],
        "top_p": body.top_p,
        "truncation": body.truncation or "disabled",
        "user": body.user,
    }


def new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"
