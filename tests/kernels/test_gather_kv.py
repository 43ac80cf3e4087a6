import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kvpolicy_kernels import gather_kv
from kvpolicy_kernels.gather_kv import reference

SHAPES = [(1, 1, 1, 1, 8, 8), (2, 3, 100, 65, 64, 32), (1, 2, 63, 63, 80, 80), (2, 1, 5, 0, 4, 4)]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
shapes = pytest.mark.parametrize(("batch", "heads", "seq", "kept", "dim", "value_dim"), SHAPES)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def example(batch, heads, seq, kept, dim, value_dim, dtype=torch.float32):
    keys = torch.randn(batch, heads, seq, dim).to(dtype)
    values = torch.randn(batch, heads, seq, value_dim).to(dtype)
    return keys, values, torch.randint(seq, (batch, heads, kept))


def naive(table, rows):
    return torch.take_along_dim(table, rows.long()[..., None], dim=2)


@shapes
@dtypes
def test_copies_rows_in_the_given_order(batch, heads, seq, kept, dim, value_dim, dtype, layout):
    keys, values, rows = example(batch, heads, seq, kept, dim, value_dim, dtype)
    kept_keys, kept_values = gather_kv(layout(keys), layout(values), rows.int())
    assert torch.equal(kept_keys, naive(keys, rows))
    assert torch.equal(kept_values, naive(values, rows))


def test_takes_a_table_that_broadcasts():
    keys = torch.randn(5, 4).expand(2, 3, 5, 4)
    rows = torch.randint(5, (2, 3, 6))
    assert torch.equal(gather_kv(keys, keys, rows)[0], naive(keys, rows))


def test_gradients_reach_the_kept_rows_only():
    keys = torch.randn(1, 2, 4, 3, requires_grad=True)
    gather_kv(keys, keys.detach(), torch.tensor([[[1], [3]]]))[0].sum().backward()
    assert keys.grad.sum(-1).tolist() == [[[0, 3, 0, 0], [0, 0, 0, 3]]]


@pytest.mark.parametrize("row", [-1, 4])
def test_a_row_that_does_not_exist_is_an_error(row):
    keys = torch.zeros(1, 2, 4, 3)
    with pytest.raises(IndexError, match=f"{row}.* not all among 4 positions"):
        gather_kv(keys, keys, torch.tensor([[[row], [row]]]))


def test_shapes_that_do_not_fit_are_an_error(refused):
    with refused("differ in batch, heads or positions"):
        gather_kv(torch.zeros(1, 2, 4, 3), torch.zeros(1, 2, 5, 3), torch.zeros(1, 2, 1).long())


@pytest.fixture
def kernel():
    pytest.importorskip("triton", reason="Triton is not installed")
    from kvpolicy_kernels.gather_kv import kernel

    return kernel


@pytest.fixture(params=["forwards", "backwards"])
def order(request, monkeypatch):
    """Run the programs of a launch in either order: results must not depend on it."""
    if request.param == "backwards":
        if DEVICE == "cuda":
            # Only the interpreter runs programs one by one, in an order that can be reversed.
            pytest.skip("a GPU chooses its own order")
        interpreter = pytest.importorskip("triton.runtime.interpreter")
        builder = interpreter.interpreter_builder
        forwards = builder.set_grid_idx

        def backwards(*place):
            forwards(*(size - 1 - i for size, i in zip(builder.grid_dim, place, strict=True)))

        monkeypatch.setattr(builder, "set_grid_idx", backwards)


@shapes
@dtypes
@pytest.mark.usefixtures("order")
def test_the_kernel_matches_the_reference(
    batch, heads, seq, kept, dim, value_dim, dtype, layout, kernel
):
    keys, values, rows = example(batch, heads, seq, kept, dim, value_dim, dtype)
    expected = reference.gather_kv(keys, values, rows)
    actual = kernel.gather_kv(
        layout(keys).to(DEVICE), layout(values).to(DEVICE), rows.int().to(DEVICE)
    )
    assert all(torch.equal(a, b.cpu()) for a, b in zip(expected, actual, strict=True))


def test_the_kernel_reads_nothing_outside_the_positions(kernel):
    keys = torch.ones(1, 1, 4, 3, device=DEVICE)
    rows = torch.tensor([[[-1, 4, 3]]], device=DEVICE)
    kept, _ = kernel.gather_kv(keys, keys, rows)
    assert kept[0, 0, :, 0].tolist() == [0, 0, 1]


def test_the_kernel_compiles_for_real_without_spills(tmp_path):
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = {
        "PYTHONPATH": ":".join(filter(None, sys.path)),
        "TRITON_CACHE_DIR": str(tmp_path),
        "TRITON_DEFAULT_FP_FUSION": "1",
    }
    result = subprocess.run(
        [sys.executable, Path(__file__).with_name("compile_offline.py")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    print(result.stdout)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("REG") == 4
