"""`--quantization` as the backends take it: fp8 rows on the reference, typed refusals elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from inferd_kernels import reference
from safetensors.torch import load_file, save_file

from inferd.config import CacheConfig, DeviceConfig, EngineConfig, ModelConfig, Quantization
from inferd.errors import StartupError
from inferd.executor.factory import create_executor
from inferd.request import LogprobParams

PROMPT = [5, 17, 99, 3, 42, 42, 8, 77, 61, 12]


def executor(path: Path, quantization: Quantization | None, backend: str = "reference") -> Any:
    config = EngineConfig(
        model=ModelConfig(source="m", path=str(path), quantization=quantization),
        cache=CacheConfig(num_blocks=64),
        device=DeviceConfig(device="cpu", kernel_backend=backend, threads=torch.get_num_threads()),
    )
    return create_executor(config, lambda phase, fraction: None)


def copied(path: Path, to: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Path:
    """The checkpoint with other tensors."""
    tensors = {name: change(name, values) for name, values in load_file(path / "model.safetensors").items()}
    save_file(tensors, to / "model.safetensors", {"format": "pt"})
    (to / "config.json").write_bytes((path / "config.json").read_bytes())
    return to


def test_fp8_weights_are_those_of_a_checkpoint_rounded_row_by_row(
    tiny_llama: Path, tmp_path: Path, run_type: type, make_driver: Callable[[Path], Any]
) -> None:
    def rounded(name: str, values: torch.Tensor) -> torch.Tensor:
        if values.dim() == 1:
            return values
        quantized, scale = reference.quantize_rows(values, torch.float8_e4m3fn)
        return quantized.float() * scale.unsqueeze(1)

    driver_type = type(make_driver(tiny_llama))
    results = []
    for path, quantization in ((tiny_llama, "fp8"), (copied(tiny_llama, tmp_path, rounded), None)):
        loaded = executor(path, quantization)
        run = run_type(PROMPT, prompt_logprobs=LogprobParams())
        driver_type(loaded).run([run])
        results.append((run.tokens, [result.logprob for result in run.prompt_results]))
        assert loaded.info.quantization == (quantization or "none")
    assert results[0] == results[1]


def test_a_quantization_that_the_backend_does_not_compute_is_refused_at_startup(tiny_llama: Path) -> None:
    with pytest.raises(StartupError, match=r"^quantization fp8: kernel backend native-\w+ takes q4, q8$"):
        executor(tiny_llama, "fp8", "native")


def test_a_matrix_that_is_not_finite_has_no_fp8_form(tiny_llama: Path, tmp_path: Path) -> None:
    def spoiled(name: str, values: torch.Tensor) -> torch.Tensor:
        return torch.full_like(values, float("inf")) if name.endswith("layers.1.mlp.down_proj.weight") else values

    with pytest.raises(StartupError, match=r"down_proj\.weight: the matrix holds values that are not finite"):
        executor(copied(tiny_llama, tmp_path, spoiled), "fp8")
