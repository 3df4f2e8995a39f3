"""How byte-level vocabularies cut text into words, by the name GGUF files give it (tokenizer.ggml.pre).

The expressions are those of the models' published tokenizer.json files. A name nobody listed is an error: a wrong cut
gives plausible, slightly wrong tokens, which no one would notice.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex, normalizers, pre_tokenizers

from inferd.errors import StartupError

TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + TAIL
QWEN2 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + TAIL
TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{TAIL}"
)
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{TAIL}"
)
DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
    + TAIL
)


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """digits: cut them one by one first; splits: expressions in turn, each match a word; gpt2: GPT-2's last."""

    splits: tuple[str, ...] = ()
    gpt2: bool = False
    digits: bool = False
    ignore_merges: bool = False
    adds_bos: bool = False
    nfc: bool = False

    def build(self) -> pre_tokenizers.PreTokenizer:
        steps: list[pre_tokenizers.PreTokenizer] = (
            [pre_tokenizers.Digits(individual_digits=True)] if self.digits else []
        )
        steps += [pre_tokenizers.Split(Regex(split), behavior="isolated") for split in self.splits]
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.gpt2))
        return pre_tokenizers.Sequence(steps)

    def normalizer(self) -> normalizers.Normalizer | None:
        return normalizers.NFC() if self.nfc else None


GPT2_LIKE = PreTokenizer(gpt2=True)
SMOLLM_LIKE = PreTokenizer(gpt2=True, digits=True)
LLAMA3_LIKE = PreTokenizer((LLAMA3,), ignore_merges=True, adds_bos=True)
QWEN2_LIKE = PreTokenizer((QWEN2,), nfc=True)
FAMILIES = (
    (GPT2_LIKE, "gpt-2 gpt2 default phi-2 olmo mpt jina-es jina-de jina-v2-es jina-v2-de roberta-bpe gigachat mellum"),
    (SMOLLM_LIKE, "smollm starcoder refact command-r codeshell exaone minerva-7b"),
    (LLAMA3_LIKE, "llama-bpe llama3 llama-v3 falcon3"),
    (PreTokenizer((LLAMA3,)), "dbrx smaug-bpe"),
    (QWEN2_LIKE, "qwen2 deepseek-r1-qwen"),
    (PreTokenizer((QWEN2,)), "stablelm2"),
    (PreTokenizer((TEKKEN,), ignore_merges=True, adds_bos=True), "tekken"),
    (PreTokenizer((GPT4O,)), "gpt-4o llama4"),
    (PreTokenizer((r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3)), "deepseek-v3"),
    (PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+"), digits=True), "deepseek-coder"),
)


def pre_tokenizer_for(name: str) -> PreTokenizer:
    """The rules for a tokenizer.ggml.pre value. StartupError for one that is not listed."""
    for family, names in FAMILIES:
        if name in names.split():
            return family
    known = " ".join(sorted(name for _, names in FAMILIES for name in names.split()))
    raise StartupError(f"pre-tokenizer {name[:40]!r} (tokenizer.ggml.pre) is not supported; supported: {known}")
