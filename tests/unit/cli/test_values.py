"""Sizes, types, files and environment: where a value comes from and what is refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from inferd.cli.arguments import Parsed, parse
from inferd.cli.build import build_config
from inferd.cli.flags import SERVE_FLAGS
from inferd.cli.main import COMMANDS, main
from inferd.cli.values import UsageError, from_environment, parse_size
from inferd.config import InferdConfig, SpeculativeConfig


def serve(*argv: str) -> Parsed:
    return parse(COMMANDS["serve"], argv)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("32", 32),
        ("32k", 32_000),
        ("32K", 32_768),
        ("25.6k", 25_600),
        ("1m", 1_000_000),
        ("4G", 4 * 2**30),
        ("4GiB", 4 * 2**30),
        ("4 GiB", 4 * 2**30),
        ("4GB", 4 * 10**9),
        ("1.5Mi", 3 * 2**19),
        ("2kB", 2_000),
    ],
)
def test_sizes(text: str, value: int) -> None:
    assert parse_size(text) == value


@pytest.mark.parametrize("text", ["", "k", "4Q", "-1", "1.5", "1e3", "0x10", "4GiBs"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="number"):
        parse_size(text)


def test_vllm_spellings_mean_the_same() -> None:
    parsed = serve(
        *("demo", "-tp", "2", "-q", "q4", "--max_num_seqs=8", "--dtype", "half", "--max-model-len", "4k"),
        *("--served-model-name", "a", "b", "--no_enable_prefix_caching", "--uvicorn-log-level", "error"),
        *("--generation-config", "vllm", "--distributed-executor-backend", "mp", "--num-gpu-blocks-override", "7"),
    )
    assert parsed.values == {
        "model": "demo",
        "tensor-parallel-size": 2,
        "quantization": "q4",
        "max-num-seqs": 8,
        "dtype": "float16",
        "max-model-len": 4000,
        "served-model-name": ("a", "b"),
        "enable-prefix-caching": False,
        "log-level": "error",
        "generation-config": "none",
        "distributed-executor-backend": "multiprocess",
        "num-kv-blocks": 7,
    }


def test_model_len_auto_is_unset() -> None:
    assert serve("demo", "--max-model-len", "auto").get("max-model-len") is None
    assert serve("demo", "--max-model-len", "-1").get("max-model-len") is None


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["demo", "--max-num-seq", "3"], "unknown flag --max-num-seq; did you mean 'max-num-seqs'?"),
        (["demo", "--max-num-seqs", "0"], '--max-num-seqs: expected an integer >= 1; got "0"'),
        (["demo", "--port", "65536"], '--port: expected an integer <= 65535; got "65536"'),
        (["demo", "--gpu-memory-utilization", "nan"], "--gpu-memory-utilization: expected a number"),
        (["demo", "--dtype", "fp8"], '--dtype: expected one of auto, float32, bfloat16, float16; got "fp8"'),
        (["demo", "--tokenizer", "x"], "--tokenizer is not supported: the tokenizer is the checkpoint's own"),
        (["demo", "-dp", "2"], "-dp is not supported: start several daemons behind one gateway"),
        (["demo", "-q", "awq"], '--quantization: expected one of q4, q8, fp8; got "awq"'),
        (["demo", "extra"], "unexpected argument 'extra'"),
        (["--port", "1"], "MODEL is missing"),
    ],
)
def test_refusals_name_flag_bound_and_value(argv: list[str], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        serve(*argv)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("ngram", SpeculativeConfig()),
        (
            '{"num_speculative_tokens": 3, "prompt_lookup_min": 1}',
            SpeculativeConfig(num_speculative_tokens=3, prompt_lookup_min=1),
        ),
        ("none", None),
    ],
)
def test_a_part_of_the_configuration_is_json(text: str, value: SpeculativeConfig | None) -> None:
    parsed = serve("demo", "--speculative-config", text)
    assert parsed.get("speculative-config") == value
    assert build_config(parsed).engine.scheduler.speculative == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("eagle", "expected ngram, none or JSON"),
        ('{"method": "eagle"}', "eagle"),
        ('{"num_speculative_tokens": 0}', "expected an integer >= 1"),
        ('{"prompt_lookup_min": 5}', "prompt_lookup_min 5 is above _max 4"),
        ('{"model": "x"}', "unknown field model"),
    ],
)
def test_a_wrong_part_of_the_configuration_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        serve("demo", "--speculative-config", text)
    assert message in str(raised.value)


def test_command_line_over_file_over_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(
        "max_num_seqs: 2\nblock-size: 8\nenable-chunked-prefill: false\nserved-model-name: [a, b]\nseed: null\n"
    )
    monkeypatch.setenv("INFERD_MAX_NUM_SEQS", "1")
    monkeypatch.setenv("INFERD_BLOCK_SIZE", "1")
    monkeypatch.setenv("INFERD_THREADS", "4")
    monkeypatch.setenv("INFERD_ENABLE_REFLECTION", "0")
    parsed = serve("demo", "--config", str(file), "--max-num-seqs", "3")
    assert [parsed.get(name) for name in ("max-num-seqs", "block-size", "threads")] == [3, 8, 4]
    assert parsed.get("enable-chunked-prefill") is False
    assert parsed.get("enable-reflection") is False
    assert parsed.get("served-model-name") == ("a", "b")
    assert parsed.get("seed") is None


def test_the_model_and_flags_without_effect_may_come_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("model: demo\ntrust-remote-code: true\n")
    parsed = serve("--config", str(file))
    assert parsed.get("model") == "demo"
    assert parsed.answers == [
        "--trust-remote-code has no effect: code from a checkpoint is never executed, with or without it"
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("max-num-sequs: 3", "unknown key 'max-num-sequs'; did you mean 'max-num-seqs'?"),
        ("uds: /tmp/x", "'uds' is not supported: HTTP is served over TCP"),
        ("config: other.yaml", "unknown key 'config'"),
        ("- a\n- b", "expected a mapping of flags, got list"),
        ("a: [", "not YAML"),
        ("port: true", "port: expected a value; got true"),
        ("port: {a: 1}", 'port: expected an integer; got "{\\"a\\": 1}"'),
        ("block_size: 1\nblock-size: 2", "'block-size' is given twice"),
        ("model: !!python/object/apply:os.getcwd []", "not YAML"),
    ],
)
def test_bad_files_are_usage_errors(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(content)
    with pytest.raises(UsageError) as raised:
        serve("demo", "--config", str(file))
    assert message in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.yaml: No such file"):
        serve("demo", "--config", str(tmp_path / "absent.yaml"))


def test_a_secret_is_not_repeated_in_an_error(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("api-key: [{nested: hunter2}]\nport: x\n")
    with pytest.raises(UsageError) as raised:
        serve("demo", "--config", str(file))
    assert "hunter2" not in str(raised.value)


def test_a_bad_environment_value_is_fatal_and_named() -> None:
    given = from_environment({"INFERD_API_KEY": "a,b", "INFERD_UNRELATED": "1", "INFERD_HOST": ""}, SERVE_FLAGS)
    assert {name: value.raw for name, value in given.items()} == {"api-key": ["a", "b"]}
    assert from_environment({"INFERD_PORT": "tcp://10.0.0.1:50051"}, SERVE_FLAGS) == {}  # Kubernetes injects it


def numeric_flags() -> list[tuple[str, str]]:
    """(command, flag) of every flag that takes a number."""
    found = []
    for name, command in COMMANDS.items():
        for flag in command.all_flags:
            kinds = msgspec.inspect.type_info(flag.value_type)
            members = kinds.types if isinstance(kinds, msgspec.inspect.UnionType) else (kinds,)
            if any(isinstance(kind, msgspec.inspect.IntType | msgspec.inspect.FloatType) for kind in members):
                found.append((name, flag.name))
    return found


MAY_BE_ZERO = {"port", "grpc-port", "metrics-port", "master-port", "node-rank", "max-logprobs", "seed", "drain-timeout"}


@pytest.mark.parametrize(("command", "flag"), numeric_flags())
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999", "-2", "0", "1" + "0" * 19, "9" * 400, "9" * 5000])
def test_numbers_that_cannot_work_are_refused(command: str, flag: str, value: str) -> None:
    arguments = ("demo",) if COMMANDS[command].takes_model else ()
    if value == "0" and flag in MAY_BE_ZERO:
        parse(COMMANDS[command], (*arguments, f"--{flag}=0"))
        return
    with pytest.raises(UsageError, match=f"^--{flag}: "):
        parse(COMMANDS[command], (*arguments, f"--{flag}={value}"))


def test_every_number_of_the_configuration_has_two_bounds() -> None:
    unbounded = []

    def visit(path: str, kind: msgspec.inspect.Type) -> None:
        if isinstance(kind, msgspec.inspect.UnionType):
            for member in kind.types:
                visit(path, member)
        elif isinstance(kind, msgspec.inspect.StructType):
            for field in kind.fields:
                visit(f"{path}.{field.name}", field.type)
        elif isinstance(kind, msgspec.inspect.IntType | msgspec.inspect.FloatType) and (
            (kind.ge is None and kind.gt is None) or (kind.le is None and kind.lt is None)
        ):
            unbounded.append(path)

    visit("config", msgspec.inspect.type_info(InferdConfig))
    assert unbounded == []


def test_a_number_in_a_file_that_python_cannot_hold(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    for text in ("9" * 5000, ".inf", ".nan", "2001-13-45"):
        file.write_text(f"step-timeout: {text}\n")
        with pytest.raises(UsageError, match=r"config\.yaml"):
            serve("demo", "--config", str(file))


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "1" + "0" * 19])
@pytest.mark.parametrize(
    "arguments",
    [
        *(
            ("bench", "serve", f"--{flag}")
            for flag in ("num-requests", "concurrency", "rate", "cancel-fraction", "warmup")
        ),
        *(("bench", "serve", f"--{flag}") for flag in ("temperature", "seed", "ttft-slo-ms", "prompt-words")),
        *(("bench", "ops", f"--{flag}") for flag in ("threads", "seconds")),
        *(("cluster", "start", "--head", f"--{flag}") for flag in ("port", "num-cpus")),
    ],
    ids=" ".join,
)
def test_numbers_of_the_other_commands(
    arguments: tuple[str, ...], value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    *command, flag = arguments
    assert main([*command, f"{flag}={value}"]) == 2
    assert flag in capsys.readouterr().err
