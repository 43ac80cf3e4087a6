"""No operation allocates a block that glibc would serve from fresh pages."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kvpolicy_kernels import (
    compact_in_place,
    gather_kv,
    pool_scores,
    reconstruction_error,
    row_statistics,
    select,
    weighted_values,
    window_attention,
    windowed_reconstruction_error,
)

MIB = 2**20
SCALING = 128**-0.5


class LargestAllocation(TorchDispatchMode):
    """The bytes of the largest storage that an operation made."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {leaf.data_ptr() for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)}
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if torch.is_tensor(leaf) and not function.is_view and leaf.data_ptr() not in given:
                self.bytes = max(self.bytes, leaf.untyped_storage().nbytes())
        return result


class Layer:
    """Numbers that cost nothing to make; their shapes are those of Llama-3.1-8B."""

    def __init__(self, positions, heads, kv_heads, dtype):
        self.queries = torch.rand(1, heads, 32, 128, dtype=dtype)
        self.keys, self.values = torch.rand(2, 1, kv_heads, positions, 128, dtype=dtype)
        self.weights = torch.full((32,), 1 / 32)
        self.factors = torch.rand(heads, 128, 128)
        self.attention = torch.full((1, heads, positions), 1 / positions)


OPERATIONS = {
    "window_attention": lambda x: window_attention(x.queries, x.keys, x.weights, scaling=SCALING),
    "row_statistics": lambda x: row_statistics(x.queries, x.keys, 992, scaling=SCALING),
    "tied_row_statistics": lambda x: row_statistics(x.queries * 0, x.keys, 992, scaling=SCALING),
    "weighted_values": lambda x: weighted_values(x.attention, x.values),
    "reconstruction_error": lambda x: reconstruction_error(
        x.attention, x.values, x.queries[:, :, 0], x.factors
    ),
    "reconstruction_error_in_value_space": lambda x: reconstruction_error(
        x.attention, x.values, x.queries[:, :, 0], None
    ),
    "pool_scores": lambda x: pool_scores(x.attention, 129, 60),
    "select": lambda x: select(x.attention, torch.tensor([[992] * x.attention.shape[1]])),
    "compact_in_place": lambda x: compact_in_place(
        x.keys, x.values, torch.arange(7, 1031).expand(1, x.keys.shape[1], -1)
    ),
    "gather_kv": lambda x: gather_kv(
        x.keys, x.values, torch.zeros(1, x.keys.shape[1], 1024, dtype=torch.int64)
    ),
}


@pytest.mark.sampled(2, "operation", "dtype")
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_block_reaches_32_mib_at_16k(operation, dtype):
    layer = Layer(16_384, 32, 8, dtype)
    with LargestAllocation() as largest:
        OPERATIONS[operation](layer)
    assert 0 < largest.bytes < 32 * MIB


@pytest.mark.parametrize("operation", OPERATIONS)
def test_no_block_reaches_32_mib_at_128k(operation):
    layer = Layer(131_072, 4, 1, torch.bfloat16)
    with LargestAllocation() as largest:
        OPERATIONS[operation](layer)
    assert 0 < largest.bytes < 32 * MIB


def test_all_queries_as_the_window_fit_as_well():
    layer = Layer(4096, 4, 1, torch.float32)
    queries, weights = torch.rand(1, 4, 4096, 128), torch.ones(4096)
    with LargestAllocation() as largest:
        window_attention(queries, layer.keys, weights, scaling=SCALING)
    assert largest.bytes < 32 * MIB


def test_the_windowed_error_fits_as_well():
    layer = Layer(16_384, 4, 1, torch.bfloat16)
    with LargestAllocation() as largest:
        windowed_reconstruction_error(
            layer.queries, layer.keys, layer.values, layer.weights, layer.factors, scaling=SCALING
        )
    assert largest.bytes < 32 * MIB


@pytest.mark.usefixtures("triton_kernels")
def test_the_kernels_store_no_row_of_attention(device):
    batch, heads, window, positions = 1, 4, 16, 100
    queries = torch.rand(batch, heads, window, 8, device=device)
    keys = torch.rand(batch, 2, positions, 8, device=device)
    weights = torch.ones(window, device=device)
    with LargestAllocation() as largest:
        window_attention(queries, keys, weights, scaling=SCALING)
    assert 0 < largest.bytes < 4 * batch * heads * window * positions / 2
