"""The flags of the commands: a frozen list, bound to the configuration."""

from __future__ import annotations

import msgspec
import pytest

from inferd.cli.flags import GATEWAY_FLAGS, HEALTH_FLAGS, SERVE_FLAGS, UP_FLAGS, Flag, field_of
from inferd.cli.values import spellings
from inferd.cli.vllm import NO_EFFECT, NOT_SUPPORTED

MAX_SERVE_FLAGS = 49

# A new flag is a promise for years: add it here on purpose.
SERVE_TEXT = """
config served-model-name revision dtype quantization max-model-len pooling chat-template generation-config
max-logprobs seed
max-num-seqs max-num-batched-tokens enable-chunked-prefill max-num-queued-reqs queue-timeout
speculative-config
block-size enable-prefix-caching gpu-memory-utilization kv-cache-memory-bytes kv-cache-dtype num-kv-blocks
tensor-parallel-size pipeline-parallel-size distributed-executor-backend step-timeout
nnodes node-rank master-addr master-port
device kernel-backend threads
host port metrics-port api-key api-key-file tls-cert tls-key tls-client-ca
admin-listen admin-api-key insecure enable-reflection drain-timeout
log-level log-format
"""
SERVE = SERVE_TEXT.split()


def test_serve_flags_are_exactly_these() -> None:
    assert [flag.name for flag in SERVE_FLAGS] == SERVE
    assert len(SERVE_FLAGS) <= MAX_SERVE_FLAGS


def test_up_takes_every_serve_flag_but_renames_the_port() -> None:
    names = [flag.name for flag in UP_FLAGS]
    assert len(names) == len(set(names))
    assert set(names) == {*SERVE, "grpc-port", *(flag.name for flag in GATEWAY_FLAGS)}


@pytest.mark.parametrize("flags", [SERVE_FLAGS, UP_FLAGS, HEALTH_FLAGS], ids=["serve", "up", "health"])
def test_no_spelling_means_two_flags(flags: tuple[Flag, ...]) -> None:
    typed = [name for flag in flags for name in (f"--{flag.name}", *flag.aliases)]
    assert len(typed) == len(set(typed))
    assert not set(spellings(flags)) & (set(NO_EFFECT) | set(NOT_SUPPORTED))


@pytest.mark.parametrize("flag", [flag for flag in SERVE_FLAGS if flag.field], ids=lambda flag: flag.name)
def test_fields_exist_and_defaults_fit_their_bounds(flag: Flag) -> None:
    assert flag.field is not None
    field = field_of(flag.field)
    assert msgspec.convert(msgspec.to_builtins(field.default), field.type) == field.default


@pytest.mark.parametrize("flag", [flag for flag in SERVE_FLAGS if flag.synonyms], ids=lambda flag: flag.name)
def test_synonyms_stand_for_legal_values(flag: Flag) -> None:
    for value in flag.synonyms.values():
        if flag.is_object and value is not None:
            msgspec.json.decode(value, type=flag.value_type)
            continue
        assert msgspec.convert(value, flag.value_type) == value


def test_configuration_has_one_flag_per_field_at_most() -> None:
    fields = [flag.field for flag in SERVE_FLAGS if flag.field]
    assert len(fields) == len(set(fields))
