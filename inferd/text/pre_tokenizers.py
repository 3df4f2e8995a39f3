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


GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
BLOOM = " ?[^(\\s|.,!?…。，、।۔،)]+"
KANA = "[一-龥぀-ゟ゠-ヿ]+"
DEEPSEEK_CJK = "[一-龥ࠀ-一가-퟿]+"
DEEPSEEK_LETTERS = (
    r"\s?"
    "[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-"
    "\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec"
    "\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-"
    "\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17"
    "\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-"
    "\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943]+"
)
LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"

GPT2_LIKE = PreTokenizer(gpt2=True)
SMOLLM_LIKE = PreTokenizer(gpt2=True, digits=True)
LLAMA3_LIKE = PreTokenizer((LLAMA3,), ignore_merges=True, adds_bos=True)
QWEN2_LIKE = PreTokenizer((QWEN2,), nfc=True)
DEEPSEEK3_LIKE = PreTokenizer((r"\p{N}{1,3}", KANA, DEEPSEEK3))
FAMILIES = (
    (
        GPT2_LIKE,
        "gpt-2 gpt2 default phi-2 olmo mpt jina-es jina-de jina-v2-es jina-v2-de jina-v1-en jina-v2-code roberta-bpe"
        " gigachat mellum a.x-4.0 modern-bert exaone4 jais trillion granite-docling",
    ),
    (SMOLLM_LIKE, "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2"),
    (LLAMA3_LIKE, "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano"),
    (PreTokenizer((LLAMA3,)), "dbrx smaug-bpe chatglm-bpe"),
    (PreTokenizer((LLAMA3,), ignore_merges=True), "glm4 glm5"),
    (QWEN2_LIKE, "qwen2 deepseek-r1-qwen f2llmv2"),
    (PreTokenizer((QWEN2,)), "stablelm2 kormo megrez hunyuan solar-open grok-2"),
    (
        PreTokenizer(
            (CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + TAIL,)
        ),
        "qwen35",
    ),
    (PreTokenizer((TEKKEN,), ignore_merges=True, adds_bos=True), "tekken"),
    (PreTokenizer((GPT4O,)), "gpt-4o llama4 kanana2 talkie minimax-m2"),
    (PreTokenizer((GPT4O,), ignore_merges=True), "granite-embed-multi-97m"),
    (PreTokenizer((r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O)), "tiny_aya cohere2moe"),
    (DEEPSEEK3_LIKE, "deepseek-v3 hunyuan-dense hy_v4 joyai-llm"),
    (PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_CJK), digits=True), "deepseek-coder"),
    (
        PreTokenizer(
            (
                r"[\r\n]",
                DEEPSEEK_LETTERS,
                "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
                r"\s+$",
                DEEPSEEK_CJK,
                r"\p{N}+",
            ),
        ),
        "deepseek-llm",
    ),
    (PreTokenizer((r"[\p{P}$+<=>^~|`]+", GPT2, r"[0-9][0-9][0-9]")), "falcon"),
    (PreTokenizer((BLOOM,)), "bloom poro-chat gpt3-finnish"),
    (PreTokenizer((BLOOM, r"\p{N}")), "viking"),
    (
        PreTokenizer((f"{CONTRACTIONS}|{LETTERS}|" + r"\p{N}| ?[^\s\p{L}\p{N}\r\n]+|" + TAIL,)),
        "seed-coder",
    ),
    (
        PreTokenizer(
            (
                r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|"
                r"\s+(?!\S)|\s+",
            )
        ),
        "bailingmoe bailingmoe2 llada-moe",
    ),
    (PreTokenizer((f"{LETTERS}|" + r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + TAIL,)), "ufakzeka"),
    (PreTokenizer((r"[^\n]+|[\n]+", QWEN2)), "laguna"),
    (
        PreTokenizer((r"\p{N}{1,3}", LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}+")), ignore_merges=True),
        "minicpm5",
    ),
)


def pre_tokenizer_for(name: str) -> PreTokenizer:
    """The rules for a tokenizer.ggml.pre value. StartupError for one that is not listed."""
    for family, names in FAMILIES:
        if name in names.split():
            return family
    known = " ".join(sorted(name for _, names in FAMILIES for name in names.split()))
    raise StartupError(f"pre-tokenizer {name[:40]!r} (tokenizer.ggml.pre) is not supported; supported: {known}")
