"""Flags -> InferdConfig, and what a configuration may not ask for."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from inferd.cli.arguments import parse
from inferd.cli.build import build_config, check_config, is_loopback
from inferd.cli.main import COMMANDS
from inferd.config import EngineConfig, InferdConfig, ModelConfig
from inferd.errors import StartupError


def config(*argv: str) -> InferdConfig:
    return build_config(parse(COMMANDS["serve"], ["demo", *argv]))


def test_defaults_are_the_configuration_s_own() -> None:
    assert config() == InferdConfig(engine=EngineConfig(model=ModelConfig(source="demo", path="")))


def test_every_layer_gets_its_flags() -> None:
    built = config(
        "--dtype", "float32", "--max-num-seqs", "4", "--kv-cache-memory-bytes", "1MiB", "--api-key", "a", "b"
    )
    assert built.engine.model.dtype == "float32"
    assert built.engine.scheduler.max_num_seqs == 4
    assert built.engine.cache.memory_bytes == 2**20
    assert built.server.api_keys == ("a", "b")


def test_keys_do_not_reach_the_engine_core() -> None:
    assert b"hunter2" not in msgspec.msgpack.encode(config("--api-key", "hunter2").engine)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--nnodes", "2"], "--nnodes above 1 needs --master-addr"),
        (["--nnodes", "2", "--node-rank", "2"], "--node-rank 2 must be below --nnodes 2"),
        (["-q", "q4"], "--quantization (a quantized checkpoint works): not built yet"),
        (["--max-num-seqs", "513"], "--max-num-batched-tokens (512) must be at least --max-num-seqs (513)"),
    ],
)
def test_what_is_not_built_says_so(argv: list[str], message: str) -> None:
    with pytest.raises(StartupError) as raised:
        check_config(config(*argv), insecure=False)
    assert message in str(raised.value)


@pytest.mark.parametrize("argv", [[], ["--host", "localhost"], ["--host", "0.0.0.0", "--api-key", "k"]])
def test_loopback_or_a_key_may_listen(argv: list[str]) -> None:
    check_config(config(*argv), insecure=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.test", ""])
def test_a_public_address_needs_a_key_or_the_word_insecure(host: str) -> None:
    with pytest.raises(StartupError, match="reachable from other machines"):
        check_config(config("--host", host), insecure=False)
    check_config(config("--host", host), insecure=True)


@pytest.mark.parametrize(("host", "loopback"), [("127.0.0.9", True), ("[::1]", True), ("::1", True), ("::", False)])
def test_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    "argv",
    [
        ["--host", "0.0.0.0", "--tls-cert", "c", "--tls-key", "k"],
        ["--host", "0.0.0.0", "--admin-api-key", "k"],
        ["--admin-listen", "0.0.0.0:50052"],
        ["--admin-listen", "0.0.0.0:50052", "--api-key", "k"],
    ],
)
def test_neither_tls_alone_nor_a_key_of_another_scope_opens_a_public_address(argv: list[str]) -> None:
    with pytest.raises(StartupError, match="reachable from other machines"):
        check_config(config(*argv), insecure=False)
    check_config(config(*argv), insecure=True)


@pytest.mark.parametrize(
    "argv",
    [
        ["--host", "0.0.0.0", "--tls-cert", "c", "--tls-key", "k", "--tls-client-ca", "a"],
        ["--admin-listen", "127.0.0.1:0"],
        ["--admin-listen", "unix:/run/inferd.sock"],
        ["--admin-listen", "0.0.0.0:50052", "--admin-api-key", "k"],
    ],
)
def test_what_may_listen(argv: list[str]) -> None:
    check_config(config(*argv), insecure=False)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--tls-cert", "c"], "--tls-cert and --tls-key"),
        (["--tls-client-ca", "a"], "--tls-client-ca needs"),
        (["--admin-listen", "50052"], "HOST:PORT or unix:PATH"),
        (["--admin-listen", "localhost:x"], "HOST:PORT or unix:PATH"),
        (["--api-key-file", "no/such/file"], "--api-key-file"),
    ],
)
def test_access_that_makes_no_sense(argv: list[str], message: str) -> None:
    with pytest.raises(StartupError, match=message):
        check_config(config(*argv), insecure=False)


def test_a_key_file_opens_a_public_address(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# nothing\n")
    argv = ["--host", "0.0.0.0", "--api-key-file", str(file)]
    with pytest.raises(StartupError, match="no key in"):
        check_config(config(*argv), insecure=False)
    file.write_text("secret\n")
    check_config(config(*argv), insecure=False)
