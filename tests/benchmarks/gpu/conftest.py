"""A bench at toy size on the CPU."""

import pytest
import torch

from benchmarks.bench import Bench
from benchmarks.gpu.scale import TOY


@pytest.fixture
def bench(tmp_path):
    return Bench(
        program="gpu",
        device=torch.device("cpu"),
        scale=TOY,
        path=tmp_path / "rows.jsonl",
        dtype=TOY.dtype,
        shape=TOY.shape,
    )
