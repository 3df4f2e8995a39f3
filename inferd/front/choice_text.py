"""Token ids of one choice -> its deltas: text, stop strings, and which token ended it."""

from __future__ import annotations

from dataclasses import dataclass

from inferd.front.output import ChoiceDelta, Finish, OutputParams
from inferd.request import FinishReason, Request
from inferd.step import TokenLogprobs
from inferd.text.detokenizer import IncrementalDetokenizer
from inferd.text.stop import StopMatcher
from inferd.text.tokenizer import Tokenizer

PROMPT_TAIL_TOKENS = 16  # holds any character that the prompt leaves unfinished


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of the first num_ids of the ids given; stop is the string that ends the choice there."""

    text: str
    num_ids: int
    stop: str | None = None


class TextStream:
    """Ids -> text that is never taken back. Stop strings are looked for from the min_tokens-th token on."""

    def __init__(self, tokenizer: Tokenizer, request: Request, skip_special_tokens: bool) -> None:
        prompt, resumed = request.prompt_token_ids, request.resumed_tokens
        original = prompt[: len(prompt) - resumed]
        self._detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens, original[-PROMPT_TAIL_TOKENS:])
        stop = request.stop
        self._matcher = StopMatcher(stop.stop_strings, stop.include_stop) if stop.stop_strings else None
        self._min_tokens = stop.min_tokens
        self._num_tokens = 0
        if resumed:
            self.push(prompt[len(original) :])  # the earlier stream sent this text; what it held back comes now

    def push(self, ids: list[int]) -> Piece:
        if self._matcher is None:
            return Piece(self._detokenizer.push(ids), len(ids))
        parts: list[str] = []
        for used, token_id in enumerate(ids, 1):
            self._num_tokens += 1
            stop = self._feed(self._detokenizer.push([token_id]), parts)
            if stop is not None:
                return Piece("".join(parts), used, stop)
        return Piece("".join(parts), len(ids))

    def flush(self) -> Piece:
        """The text held back, at the end of the choice."""
        tail = self._detokenizer.flush()
        if self._matcher is None:
            return Piece(tail, 0)
        parts: list[str] = []
        stop = self._feed(tail, parts)
        if stop is None:
            parts.append(self._matcher.flush())
        return Piece("".join(parts), 0, stop)

    def _feed(self, text: str, parts: list[str]) -> str | None:
        assert self._matcher is not None
        if self._num_tokens < self._min_tokens:
            parts.append(text)
            return None
        match = self._matcher.push(text)
        parts.append(match.text)
        return match.matched


class ChoiceText:
    """One choice's deltas. After one with a finish, nothing may be pushed."""

    def __init__(self, index: int, tokenizer: Tokenizer, request: Request, output: OutputParams) -> None:
        self._index = index
        self._output = output
        self._include_stop = request.stop.include_stop
        self._stop_token_ids = frozenset(request.stop.eos_token_ids + request.stop.stop_token_ids)
        needs_text = output.text or bool(request.stop.stop_strings)
        self._stream = TextStream(tokenizer, request, output.skip_special_tokens) if needs_text else None
        self.completion_tokens = 0
        self.finished = False

    def push(self, ids: list[int], logprobs: list[TokenLogprobs], reason: FinishReason | None) -> ChoiceDelta:
        """The delta of these tokens. A stop string found in them ends the choice earlier than `reason` says."""
        piece = self._text_of(ids, reason)
        if piece.stop is not None:
            ids, logprobs, reason = ids[: piece.num_ids], logprobs[: piece.num_ids], FinishReason.STOP_STRING
        self.completion_tokens += len(ids)
        finish = None
        if reason is not None:
            self.finished = True
            finish = Finish(reason, self.completion_tokens, self._stop_token(ids, reason), piece.stop)
        shown = ids if self._output.token_ids or logprobs else []
        return ChoiceDelta(self._index, piece.text if self._output.text else "", shown, logprobs, finish)

    def _stop_token(self, ids: list[int], reason: FinishReason | None) -> int | None:
        """The token that ended the choice; none when its constraint did, by leaving nothing to follow."""
        by_token = reason in (FinishReason.EOS, FinishReason.STOP_TOKEN) and ids and ids[-1] in self._stop_token_ids
        return ids[-1] if by_token else None

    def _text_of(self, ids: list[int], reason: FinishReason | None) -> Piece:
        if self._stream is None:
            return Piece("", len(ids))
        hidden = self._stop_token(ids, reason) is not None and not self._include_stop
        visible = ids[:-1] if hidden else ids
        piece = self._stream.push(visible)
        if piece.stop is not None or reason is None:
            return piece
        tail = self._stream.flush()
        return Piece(piece.text + tail.text, len(visible), tail.stop)
