import pytest
import torch
from inferd_kernels.proof.interpreter import repair

repair()
torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20)
