"""inferd.v1.Prompt -> token ids: checks, tokenization, truncation."""

from __future__ import annotations

from dataclasses import dataclass

from inferd.errors import ContextLengthExceeded, InvalidParameter
from inferd.server.fields import check_token_ids
from inferd.text.decode import decode_with_starts
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


def truncate(ids: list[int], truncation: int, room: int) -> list[int]:
    """At most `room` ids where truncation was asked for; else all of them, which check_fits() judges."""
    if len(ids) <= room:
        return ids
    if truncation == common_pb2.TRUNCATION_KEEP_END:
        return ids[-room:]
    return ids[:room] if truncation == common_pb2.TRUNCATION_KEEP_START else ids


def check_fits(prompt_tokens: int, output_tokens: int, context: int) -> None:
    """Raises ContextLengthExceeded, which names the one that does not fit by itself; the prompt, where only both are
    too much."""
    if prompt_tokens + output_tokens <= context:
        return
    metadata = {"prompt_tokens": str(prompt_tokens), "max_context_tokens": str(context)}
    if prompt_tokens >= context:
        message = f"the prompt has {prompt_tokens} tokens, the context of {context} leaves room for {context - 1}"
        raise ContextLengthExceeded(message, field="prompt", metadata=metadata)
    raise ContextLengthExceeded(
        f"the prompt has {prompt_tokens} tokens and stop.max_tokens is {output_tokens}, together at most the "
        f"{context} of the context are allowed",
        field="stop.max_tokens" if output_tokens >= context else "prompt",
        metadata={**metadata, "output_tokens": str(output_tokens)},
    )


@dataclass(frozen=True, slots=True)
class PromptText:
    """A prompt as it was read. starts: UTF-8 byte offset of each token in the text."""

    text: str
    starts: list[int]
    token_bytes: list[bytes]


def prompt_text(prompt: common_pb2.Prompt, ids: list[int], truncated: bool, tokenizer: Tokenizer) -> PromptText:
    """Of a prompt that was read as `ids`."""
    if truncated or prompt.WhichOneof("kind") == "token_ids":
        text, starts = decode_with_starts(tokenizer, ids)
    else:
        given, add = encode_arguments(prompt)
        text = given if isinstance(given, str) else "".join(run for run, _ in given)
        starts = tokenizer.encode_with_offsets(given, add).starts
    return PromptText(text, starts, [tokenizer.token_bytes(token_id) for token_id in ids])
