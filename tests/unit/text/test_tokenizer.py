"""Encoding and decoding against the tokenizers library itself."""

from __future__ import annotations

import dataclasses
import json
import random
import threading
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers, processors

from inferd.checkpoint import Checkpoint, GgufVocabulary, TokenizerFiles, open_checkpoint
from inferd.errors import StartupError
from inferd.text.pre_tokenizers import FAMILIES
from inferd.text.tokenizer import Tokenizer

Ours = dict[str, Tokenizer]
Libraries = dict[str, tokenizers.Tokenizer]

# name here -> the library tokenizer that defines the right answer
SAME_AS = {
    "byte-level": "byte-level",
    "gguf-bpe": "byte-level",
    "legacy": "legacy",
    "gguf-spm": "legacy",
    "first": "first",
    "unigram": "unigram",
}
EVERY = sorted(SAME_AS)
FRAGMENTS = [
    *("<|im_start|>", "<|im_end|>", "<|im_", "start|>", "<s>", "</s>", "<unk>", "<tool>", "</", "s>", "<", "|"),
    *(" ", "  ", "\n", "\t", "the", " the", " cat", "at", "日本", "語", "été", "😀", "12", "\x00", "\u0301", "x", "'s"),
]
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=20).map("".join) | st.text(max_size=30)


@pytest.mark.parametrize("name", EVERY)
@given(text=texts)
def test_trusted_text_is_what_the_library_gives(name: str, text: str, ours: Ours, libraries: Libraries) -> None:
    if name == "gguf-bpe":
        text = text.replace("<|wide|>", "")  # the GGUF form has no such token
    expected = libraries[SAME_AS[name]].encode(text, add_special_tokens=False)
    ids = ours[name].encode(text, add_special_tokens=False)
    assert ids == expected.ids
    if "\ufffd" not in ours[name].decode(ids):
        assert ours[name].decode(ids) == libraries[SAME_AS[name]].decode(ids, skip_special_tokens=False)
        assert ours[name].decode(ids, True) == libraries[SAME_AS[name]].decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", EVERY)
@given(text=texts)
def test_untrusted_text_never_makes_a_control_token(name: str, text: str, ours: Ours) -> None:
    tokenizer = ours[name]
    unknown = {token.id for token in tokenizer.special_tokens if token.role == "unk" or token.text == "<unk>"}
    ids = tokenizer.encode([(text, False)])
    assert not [index for index in ids if tokenizer.is_special(index) and index not in unknown]


@pytest.mark.parametrize("name", EVERY)
@given(runs=st.lists(st.tuples(st.sampled_from(["the cat", " s", "at 日", "本 ", "é", ""]), st.booleans()), max_size=8))
def test_runs_without_control_strings_are_one_text(name: str, runs: list[tuple[str, bool]], ours: Ours) -> None:
    whole = "".join(text for text, _ in runs)
    assert ours[name].encode(runs) == ours[name].encode(whole, add_special_tokens=False)


@pytest.mark.parametrize("name", ["byte-level", "gguf-bpe"])
@given(text=st.text(max_size=50))
def test_byte_level_round_trip(name: str, text: str, ours: Ours) -> None:
    tokenizer = ours[name]
    assert tokenizer.byte_level
    ids = tokenizer.encode([(text, False)])
    assert tokenizer.decode(ids) == text
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


def test_trust_is_per_run(ours: Ours) -> None:
    tokenizer = ours["byte-level"]
    start = tokenizer.encode("<|im_start|>")[0]
    assert tokenizer.is_special(start)
    user = "<|im_start|>"
    ids = tokenizer.encode([("<|im_start|>user\n", True), (user, False), ("<|im_end|>", True)])
    assert ids.count(start) == 1
    assert tokenizer.decode(ids) == "<|im_start|>user\n<|im_start|><|im_end|>"
    # Neither across a border into user text, nor out of it.
    assert start not in tokenizer.encode([("<|im_", True), ("start|>", False)])
    assert start not in tokenizer.encode([("<|im_", False), ("start|>", True)])
    # Neighbouring trusted runs are one.
    assert tokenizer.encode([("<|im_", True), ("start|>", True)]) == [start]
    # Tokens that are not control tokens are part of the text for everyone.
    tool = tokenizer.encode("<tool>")
    assert len(tool) == 1
    assert tokenizer.encode([("<to", False), ("ol>", True)]) == tool


def test_white_space_taken_by_a_token(ours: Ours, libraries: Libraries) -> None:
    for text in ("a <|wide|> \n b", "<|wide|>  <|wide|> ", "  <|wide|>", "a<|wide|>b", " <|im_end|> <|wide|>"):
        assert ours["byte-level"].encode(text) == libraries["byte-level"].encode(text).ids
    encoded = ours["byte-level"].encode_with_offsets("é <|wide|> b")
    assert (encoded.starts[-2:], encoded.ends[-2:]) == ([2, 12], [12, 13])


def test_single_word_tokens(load: Callable[..., Tokenizer], libraries: Libraries) -> None:
    library = tokenizers.Tokenizer.from_str(libraries["byte-level"].to_str())
    library.add_tokens([AddedToken("zap", single_word=True, normalized=False)])
    tokenizer = load(library)
    for text in ("zap", "a zap b", "zapper", "xzap", "zap zap", "(zap)", "zap_", "zapzap"):
        assert tokenizer.encode(text) == library.encode(text).ids


@pytest.mark.parametrize("name", ["byte-level", "legacy", "first"])
@pytest.mark.parametrize("lowercase", [False, True])
def test_tokens_that_are_found_in_normalized_text(
    name: str, lowercase: bool, load: Callable[..., Tokenizer], libraries: Libraries
) -> None:
    library = tokenizers.Tokenizer.from_str(libraries[name].to_str())
    if lowercase and library.normalizer is None:
        library.normalizer = normalizers.Lowercase()
    tokens = [AddedToken("Zap", normalized=True), AddedToken("<raw>", normalized=False)]
    library.add_tokens([*tokens, AddedToken("<Tool Call>", normalized=True)])
    tokenizer = load(library)
    for text in ("Zap", "a zap", "the Zap cat", " Zap", "aZapb", "zap<raw>Zap", "<Tool Call>x", "cat <tool call>"):
        ids = library.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text, add_special_tokens=False) == ids
        assert tokenizer.decode(ids) == library.decode(ids, skip_special_tokens=False)


def test_space_marks_of_added_tokens_are_spaces(load: Callable[..., Tokenizer], libraries: Libraries) -> None:
    library = tokenizers.Tokenizer.from_str(libraries["first"].to_str())
    library.add_tokens([AddedToken("▁▁▁", normalized=False)])
    ids = library.encode("a▁▁▁at", add_special_tokens=False).ids
    assert load(library).decode(ids) == library.decode(ids) == "a   at"


def test_tokens_without_a_row_of_the_embedding_are_text(
    load: Callable[..., Tokenizer], libraries: Libraries, caplog: pytest.LogCaptureFixture
) -> None:
    library = tokenizers.Tokenizer.from_str(libraries["byte-level"].to_str())
    rows = library.get_vocab_size()
    library.add_special_tokens(["<image>"])
    tokenizer = load(library, {"pad_token": "<image>"}, config={"vocab_size": rows})
    assert tokenizer.vocab_size == rows
    assert max(tokenizer.encode("the <image> cat")) < rows
    assert tokenizer.decode(tokenizer.encode("the <image> cat")) == "the <image> cat"
    assert "<image>" not in {token.text for token in tokenizer.special_tokens}
    assert f"{rows + 1} tokens, the embedding {rows} rows: <image>" in caplog.text
    assert load(library, config={"vocab_size": rows + 64}).encode("<image>") == [rows]
    with pytest.raises(StartupError, match=f"has {rows + 1} tokens, the embedding 300 rows"):
        load(library, config={"vocab_size": 300})


@pytest.mark.parametrize(("kind", "fits"), [(3, True), (4, True), (1, False)])
def test_gguf_tokens_without_a_row(kind: int, fits: bool, gguf_vocabulary: GgufVocabulary) -> None:
    rows = len(gguf_vocabulary.tokens)
    larger = with_tokens(gguf_vocabulary, **{"<image>": kind})
    checkpoint = Checkpoint(Path("m"), "gguf", {"vocab_size": rows}, {}, larger, {}, {}, "")
    if not fits:
        with pytest.raises(StartupError, match=f"the tokenizer has {rows + 1} tokens, the embedding {rows} rows"):
            Tokenizer.from_checkpoint(checkpoint)
        return
    tokenizer = Tokenizer.from_checkpoint(checkpoint)
    assert tokenizer.vocab_size == rows
    assert tokenizer.decode(tokenizer.encode("a<image>b")) == "a<image>b"


def test_bos_is_added_once(ours: Ours, libraries: Libraries) -> None:
    for name in ("legacy", "first", "gguf-spm"):
        tokenizer = ours[name]
        assert tokenizer.adds_bos
        assert not tokenizer.adds_eos
        with_bos = [1, *tokenizer.encode("the cat", add_special_tokens=False)]
        assert tokenizer.encode("the cat") == with_bos == libraries["legacy"].encode("the cat").ids
        assert tokenizer.encode("") == [1]
        assert tokenizer.encode("<s>the cat").count(1) == 1
        assert tokenizer.encode([("the cat", False)]) == with_bos[1:]
        assert tokenizer.encode([("the cat", False)], add_special_tokens=True) == with_bos
        assert tokenizer.encode([("<s>", True), ("x", False)], add_special_tokens=True).count(1) == 1
    assert ours["byte-level"].encode("") == []


def test_configured_bos_and_eos_win(load: Callable[..., Tokenizer], libraries: Libraries) -> None:
    names = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
    plain = load(libraries["legacy"], names | {"add_bos_token": False, "add_eos_token": True})
    assert (plain.adds_bos, plain.adds_eos) == (False, True)
    assert plain.encode("the")[-1] == 2
    assert plain.encode("the</s>").count(2) == 1
    assert [(token.role, token.text) for token in plain.special_tokens] == [
        ("bos", "<s>"),
        ("eos", "</s>"),
        ("", "<unk>"),
    ]


def test_padding_and_truncation_are_not_applied(load: Callable[..., Tokenizer], libraries: Libraries) -> None:
    library = tokenizers.Tokenizer.from_str(libraries["byte-level"].to_str())
    library.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 0), ("<|im_end|>", 1)]
    )
    library.enable_truncation(4)
    library.enable_padding(length=8)
    ids = load(library).encode("the cat sat on the mat")
    assert (ids[0], ids[-1]) == (0, 1)
    assert load(library).decode(ids, skip_special_tokens=True) == "the cat sat on the mat"


@pytest.mark.parametrize(
    ("configs", "expected"),
    [
        ({"generation_config": {"eos_token_id": [7, 8]}, "config": {"eos_token_id": 9}}, (7, 8, 1)),
        ({"config": {"eos_token_id": 9}}, (9, 1)),
        ({"generation_config": {"eos_token_id": None}, "config": {"eos_token_id": [1, 5]}}, (1, 5)),
        ({"generation_config": {"eos_token_id": "x"}}, (1,)),
    ],
)
def test_eos_ids(
    load: Callable[..., Tokenizer], libraries: Libraries, configs: dict[str, Any], expected: tuple[int, ...]
) -> None:
    assert load(libraries["byte-level"], {"eos_token": "<|im_end|>"}, **configs).eos_token_ids == expected


def test_token_bytes(ours: Ours) -> None:
    spm = ours["gguf-spm"]
    assert spm.token_bytes(3 + 0xE2) == b"\xe2"
    assert spm.token_bytes(1) == b"<s>"
    (the,) = spm.encode("the", add_special_tokens=False)
    assert spm.token_bytes(the) == b" the"
    for index in (-1, spm.vocab_size, 10**9):
        assert spm.token_bytes(index) == b""
    assert spm.decode([-1, the, 10**9]) == "the"


@pytest.mark.parametrize("name", EVERY)
@given(text=texts)
def test_offsets_cover_the_text(name: str, text: str, ours: Ours, libraries: Libraries) -> None:
    tokenizer = ours[name]
    encoded = tokenizer.encode_with_offsets(text, add_special_tokens=True)
    assert encoded.ids == tokenizer.encode(text, add_special_tokens=True)
    raw = text.encode()
    for start, end in zip(encoded.starts, encoded.ends, strict=True):
        raw[start:end].decode()  # on character borders
    if name == "byte-level" and "wide" not in text:
        position = 0
        for start, end in zip(encoded.starts, encoded.ends, strict=True):
            assert start <= position <= end
            position = end
        assert position == len(raw)


def test_special_tokens_sharing_prefixes(load: Callable[..., Tokenizer], libraries: Libraries) -> None:
    library = tokenizers.Tokenizer.from_str(libraries["byte-level"].to_str())
    library.add_special_tokens([f"<|r_{index}|>" for index in range(300)] + ["<|r", "<|r_1"])
    tokenizer = load(library)
    rng = random.Random(1)
    for _ in range(200):
        text = "".join(rng.choice(["<|r_1", "<|r_12|>", "<|r", "_299|>", "<|", "r_7|>", " "]) for _ in range(9))
        assert tokenizer.encode(text) == library.encode(text).ids


def expected_words(pre: str, text: str) -> list[str]:
    family = next(family for family, names in FAMILIES if pre in names.split())
    normalizer = family.normalizer()
    normalized = normalizer.normalize_str(text) if normalizer else text
    return [normalized[start:end] for _, (start, end) in family.build().pre_tokenize_str(normalized)]


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        ("gpt-2", ["He", "'s", " got", " 2024", "  ", " éa", "!!", "\n", "\n", "ok"]),
        ("smollm", ["He", "'s", " got", " ", "2", "0", "2", "4", "  ", " éa", "!!", "\n", "\n", "ok"]),
        ("llama-bpe", ["He", "'s", " got", " ", "202", "4", "  ", " éa", "!!\n\n", "ok"]),
        ("qwen2", ["He", "'s", " got", " ", "2", "0", "2", "4", "  ", " éa", "!!\n\n", "ok"]),
        ("tekken", ["He", "'s", " got", " ", "2", "0", "2", "4", "  ", " éa", "!!\n\n", "ok"]),
        ("gpt-4o", ["He's", " got", " ", "202", "4", "  ", " éa", "!!\n\n", "ok"]),
        ("deepseek-v3", ["He", "'s", " got", " ", "202", "4", "  ", " éa", "!!\n\n", "ok"]),
        # Its expression for punctuation has the range : to ~, which holds the Latin letters.
        ("deepseek-llm", ["He", "'", "s", " got", " ", "2024", "  ", " é", "a", "!!", "\n", "\n", "ok"]),
        ("falcon", ["He", "'", "s", " got", " ", "202", "4", "  ", " éa", "!!", "\n", "\n", "ok"]),
        ("glm4", ["He", "'s", " got", " ", "202", "4", "  ", " éa", "!!\n\n", "ok"]),
        ("qwen35", ["He", "'s", " got", " ", "2", "0", "2", "4", "  ", " éa", "!!\n\n", "ok"]),
        ("tiny_aya", ["He's", " got", " ", "2", "024", "  ", " éa", "!!\n\n", "ok"]),
        ("viking", ["He's", " got", " ", "2", "0", "2", "4", "  ", " éa", "!!\n\n", "ok"]),
        ("bloom", ["He's", " got", " 2024", "  ", " éa", "!!\n\n", "ok"]),
        ("seed-coder", ["He", "'s", " got", " ", "2", "0", "2", "4", "  ", " éa", "!!", "\n\n", "ok"]),
        ("bailingmoe", ["He", "'s", " got", " ", "2", "0", "2", "4", "  ", " éa", "!!\n\n", "ok"]),
        ("ufakzeka", ["He", "'s", " got", " ", "2", "0", "2", "4", "  ", " éa", "!!\n\n", "ok"]),
        ("laguna", ["He", "'s", " got", " ", "2", "0", "2", "4", "  ", " éa", "!!", "\n\n", "ok"]),
        ("minicpm5", ["He", "'s", " got", " ", "202", "4", "  ", " éa", "!!\n\n", "ok"]),
    ],
)
def test_pre_tokenizers(pre: str, words: list[str]) -> None:
    assert expected_words(pre, "He's got 2024   éa!!\n\nok") == words


@pytest.mark.parametrize("pre", [names.split()[0] for _, names in FAMILIES])
@settings(max_examples=25)
@given(text=texts)
def test_every_pre_tokenizer_keeps_all_text(pre: str, text: str, gguf_vocabulary: GgufVocabulary) -> None:
    tokenizer = tokenizer_of(dataclasses.replace(gguf_vocabulary, pre=pre))
    decoded = tokenizer.decode(tokenizer.encode([(text, False)]))
    assert decoded == (unicodedata.normalize("NFC", text) if pre == "qwen2" else text)


def tokenizer_of(vocabulary: GgufVocabulary | TokenizerFiles) -> Tokenizer:
    return Tokenizer.from_checkpoint(Checkpoint(Path("m"), "gguf", {}, {}, vocabulary, {}, {}, ""))


def test_gguf_defaults(gguf_vocabulary: GgufVocabulary) -> None:
    assert not tokenizer_of(gguf_vocabulary).adds_bos
    assert tokenizer_of(dataclasses.replace(gguf_vocabulary, pre="llama-bpe")).adds_bos
    assert not tokenizer_of(dataclasses.replace(gguf_vocabulary, pre="llama-bpe", add_bos=False)).adds_bos
    assert tokenizer_of(dataclasses.replace(gguf_vocabulary, add_eos=True)).adds_eos
    ends = dataclasses.replace(gguf_vocabulary, special_ids={"eos": 2})
    assert tokenizer_of(ends).eos_token_ids == (2, 1)  # <|im_end|> ends a turn although the file does not say so
    named = dataclasses.replace(gguf_vocabulary, special_ids={"eos": 1})
    assert tokenizer_of(named).eos_token_ids == (1, 2)  # and <|endoftext|> a document
    fingerprints = {tokenizer_of(v).fingerprint for v in (gguf_vocabulary, ends)}
    assert len(fingerprints) == 2


def with_tokens(vocabulary: GgufVocabulary, **types: int) -> GgufVocabulary:
    """Further tokens, each with its type."""
    tokens, kinds = [*vocabulary.tokens, *types], [*vocabulary.token_types, *types.values()]
    return dataclasses.replace(vocabulary, tokens=tokens, token_types=kinds, special_ids={"eos": 2})


@pytest.mark.parametrize("kind", [1, 3, 4], ids=["normal", "control", "user-defined"])
@pytest.mark.parametrize(
    "text", ["<end_of_turn>", "<|eot_id|>", "<|return|>", "[EOT]", "<｜end▁of▁sentence｜>", "</s>"]
)
def test_what_ends_a_turn_ends_it_whatever_its_type(text: str, kind: int, gguf_vocabulary: GgufVocabulary) -> None:
    tokenizer = tokenizer_of(with_tokens(gguf_vocabulary, **{text: kind}))
    (end,) = tokenizer.encode(text)
    assert end in tokenizer.eos_token_ids
    assert tokenizer.is_special(end)
    assert end not in tokenizer.encode([(text, False)])


def test_a_part_of_a_turn_is_no_end(gguf_vocabulary: GgufVocabulary) -> None:
    tokenizer = tokenizer_of(with_tokens(gguf_vocabulary, **{"<|end|>": 3, "<|return|>": 3, "<|call|>": 3}))
    part, answer, call = (tokenizer.encode(text)[0] for text in ("<|end|>", "<|return|>", "<|call|>"))
    assert {answer, call} < set(tokenizer.eos_token_ids)
    assert part not in tokenizer.eos_token_ids


@pytest.mark.parametrize("pre", ["", "default"])
def test_a_guessed_pre_tokenizer_is_said(
    pre: str, gguf_vocabulary: GgufVocabulary, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer_of(dataclasses.replace(gguf_vocabulary, pre=pre))
    assert "GPT-2's is used" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "rwkv"}, "'rwkv' is not supported"),
        ({"pre": "kimi-k2"}, "'kimi-k2'"),
        ({"merges": ["no such"]}, "do not fit each other"),
        ({"merges": ["one"]}, "do not fit each other"),
        ({"model": "llama"}, "one score per token"),
    ],
)
def test_bad_gguf_vocabulary(gguf_vocabulary: GgufVocabulary, change: dict[str, Any], message: str) -> None:
    with pytest.raises(StartupError, match=message) as caught:
        tokenizer_of(dataclasses.replace(gguf_vocabulary, **change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no tokenizer.json"),
        ("{", "not valid JSON"),
        ("{}", "not a tokenizer"),
        (
            '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}, "added_tokens": []}',
            "not a tokenizer",
        ),
    ],
)
def test_bad_tokenizer_json(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(StartupError, match=message) as caught:
        tokenizer_of(TokenizerFiles(path if content is not None else None))
    assert "\n" not in str(caught.value)


def test_decoder_that_cannot_be_undone_is_refused(tmp_path: Path, libraries: Libraries) -> None:
    description = json.loads(libraries["byte-level"].to_str())
    description["decoder"] = {"type": "BPEDecoder", "suffix": "</w>"}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(description))
    with pytest.raises(StartupError, match="BPEDecoder"):
        tokenizer_of(TokenizerFiles(path))


def test_demo_tokenizer(demo_gguf: Path) -> None:
    checkpoint = open_checkpoint(demo_gguf)
    assert cpu_seconds(lambda: Tokenizer.from_checkpoint(checkpoint)) < 1.0
    tokenizer = Tokenizer.from_checkpoint(checkpoint)
    assert (tokenizer.vocab_size, tokenizer.eos_token_ids) == (49152, (2, 0))
    assert tokenizer.encode("<|im_start|>user\nHello world 12<|im_end|>\n") == [
        *(1, 4093, 198, 19556, 905, 216, 33, 34, 2, 198)
    ]


def cpu_seconds(action: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(3):
        began = time.process_time()
        action()
        best = min(best, time.process_time() - began)
    return best


@pytest.mark.parametrize("name", ["byte-level", "legacy"])
@pytest.mark.parametrize("unit", ["a", " ", "\n", "<|im_start|>", "日", "á", "x y\n"])
@pytest.mark.parametrize("trusted", [True, False])
def test_time_is_linear(name: str, unit: str, trusted: bool, ours: Ours) -> None:
    size = 1 << 13
    short, long = (unit * (count // len(unit)) for count in (size, 8 * size))
    once = cpu_seconds(lambda: ours[name].encode([(short, trusted)]))
    eightfold = cpu_seconds(lambda: ours[name].encode([(long, trusted)]))
    assert eightfold <= 2.6**3 * once + 0.01  # three doublings; quadratic would be 64 times


def test_other_threads_run_while_a_long_text_is_encoded(ours: Ours) -> None:
    text = "the cat sat on the mat " * 20_000
    worker = threading.Thread(target=ours["byte-level"].encode, args=([(text, False)],))
    worker.start()
    turns = 0
    while worker.is_alive():
        worker.join(timeout=0.002)
        turns += 1
    assert turns > 10
