"""inferd.v1.Prompt -> token ids: checks, tokenization, truncation."""

from __future__ import annotations

from inferd.errors import ContextLengthExceeded, InvalidParameter
from inferd.server.fields import check_token_ids
from inferd.text.tokenizer import Segments, Tokenizer
from inferd.v1 import common_pb2


def check_prompt(field: str, prompt: common_pb2.Prompt, vocab_size: int, *, adds_bos: bool = False) -> None:
    """Not empty, and ids of the vocabulary. adds_bos: a BOS before plain text counts as its content. Costs no
    tokenization."""
    kind = prompt.WhichOneof("kind")
    match kind:
        case "text":
            bare = prompt.HasField("add_special_tokens") and not prompt.add_special_tokens
            empty = not prompt.text and (bare or not adds_bos)
        case "segments":
            empty = not any(segment.text for segment in prompt.segments.segments)
        case "token_ids":
            empty = not prompt.token_ids.ids
            check_token_ids(f"{field}.token_ids", prompt.token_ids.ids, vocab_size)
            if prompt.HasField("add_special_tokens"):
                raise InvalidParameter(
                    f"{field}.add_special_tokens has no meaning for token_ids", field=f"{field}.add_special_tokens"
                )
        case _:
            empty = True
    if empty:
        raise InvalidParameter(f"{field} is empty", field=field)


def prompt_bytes(prompt: common_pb2.Prompt) -> int:
    """About how much there is to tokenize."""
    return 0 if prompt.WhichOneof("kind") == "token_ids" else prompt.ByteSize()


def encode_prompt(prompt: common_pb2.Prompt, tokenizer: Tokenizer) -> list[int]:
    """Token ids of a checked prompt."""
    if prompt.WhichOneof("kind") == "token_ids":
        return list(prompt.token_ids.ids)
    return tokenizer.encode(*encode_arguments(prompt))


def encode_arguments(prompt: common_pb2.Prompt) -> tuple[str | Segments, bool | None]:
    """What Tokenizer.encode takes, for a prompt of text or segments."""
    add = prompt.add_special_tokens if prompt.HasField("add_special_tokens") else None
    if prompt.WhichOneof("kind") == "segments":
        return [(segment.text, segment.parse_special) for segment in prompt.segments.segments], add
    return prompt.text, add


def encode_bad_words(words: list[str], tokenizer: Tokenizer, max_tokens: int) -> tuple[tuple[int, ...], ...]:
    """Each word as it is written at the start of a text and after a space."""
    sequences = dict.fromkeys(
        tuple(tokenizer.encode(prefix + word.strip(), False)) for word in words for prefix in ("", " ")
    )
    total = sum(len(sequence) for sequence in sequences)
    if total > max_tokens:
        raise InvalidParameter(
            f"sampling.bad_words has {total} tokens, at most {max_tokens} are allowed", field="sampling.bad_words"
        )
    return tuple(sequence for sequence in sequences if sequence)


def truncate(ids: list[int], truncation: int, room: int, context: int) -> list[int]:
    """At most `room` ids. Raises ContextLengthExceeded unless truncation was asked for."""
    if len(ids) <= room:
        return ids
    if truncation == common_pb2.TRUNCATION_KEEP_END:
        return ids[-room:]
    if truncation == common_pb2.TRUNCATION_KEEP_START:
        return ids[:room]
    raise ContextLengthExceeded(
        f"the prompt has {len(ids)} tokens, the context of {context} leaves room for {room}",
        field="prompt",
        metadata={"prompt_tokens": str(len(ids)), "max_context_tokens": str(context)},
    )
