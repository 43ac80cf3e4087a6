import pytest
import torch

from kvpolicy_kernels import row_statistics
from kvpolicy_kernels.backend import KernelFallbackWarning
from kvpolicy_kernels.row_statistics import reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(2, 4, 2, 1, 17, 8), (1, 2, 2, 2, 301, 80), (1, 6, 1, 3, 140, 128), (1, 1, 1, 2, 2100, 8)]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
pytestmark = pytest.mark.usefixtures("triton_kernels")


@pytest.fixture(params=["held", "counted"])
def way(request, monkeypatch):
    """Hold logits in memory, or count and hold none: the same for every layer."""
    from kvpolicy_kernels.row_statistics import kernel

    monkeypatch.setattr(kernel, "LAUNCHES", 1000 if request.param == "held" else 0)
    return request.param


def example(batch, heads, kv_heads, window, positions, dim, whole=False):
    """Queries and keys; as whole numbers their logits are exact, and many are equal."""
    queries = torch.randn(batch, heads, window, dim)
    keys = torch.randn(batch, kv_heads, positions, dim)
    return (queries.round(), keys.round()) if whole else (queries, keys)


def check_kernel(queries, keys, count, device, scaling=0.5):
    expected = reference.row_statistics(queries, keys, count, scaling=scaling)
    actual = row_statistics(queries.to(device), keys.to(device), count, scaling=scaling)
    assert actual.dtype == torch.float64
    assert torch.equal(actual.cpu(), expected)


@pytest.mark.sampled(2, "dtype")
@dtypes
def test_rows_that_are_counted_need_no_memory_of_their_own(dtype, device, monkeypatch):
    from kvpolicy_kernels.row_statistics import kernel

    monkeypatch.setattr(kernel, "LAUNCHES", 0)
    for shape in ((2, 4, 2, 1, 17, 8), (1, 3, 1, 3, 140, 80)):
        queries, keys = (tensor.to(dtype) for tensor in example(*shape, whole=True))
        check_kernel(queries, keys, shape[4] // 3, device)


@pytest.mark.sampled(2, "shape", "dtype")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@dtypes
def test_of_equal_logits_the_lower_positions_count(shape, dtype, device):
    queries, keys = (tensor.to(dtype) for tensor in example(*shape, whole=True))
    check_kernel(queries, keys, shape[4] // 3, device)


@pytest.mark.sampled(3, "count", "way")
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("count", [1, 14, 15, 16, 17, 5000])
def test_queries_that_see_less_than_the_count_use_all(count, device):
    check_kernel(*example(1, 2, 1, 3, 17, 8), count, device, scaling=0.3)


@dtypes
def test_matches_the_reference_on_any_numbers(dtype, device):
    queries, keys = (tensor.to(dtype) for tensor in example(1, 4, 2, 2, 300, 64))
    check_kernel(queries, keys, 97, device, scaling=0.125)


@pytest.mark.sampled(2, "layout", "way")
@pytest.mark.usefixtures("way")
def test_takes_any_layout(layout, device):
    queries, keys = example(2, 2, 1, 3, 40, 16, whole=True)
    expected = reference.row_statistics(queries, keys, 11, scaling=1.0)
    actual = row_statistics(
        layout(queries).to(device), layout(keys).to(device), 11, scaling=1.0, softcap=30.0
    )
    assert torch.equal(actual.cpu(), expected)


def test_a_group_may_have_more_rows_than_a_tile(device, monkeypatch):
    from kvpolicy_kernels.row_statistics import kernel

    monkeypatch.setattr(kernel, "MOST_ROWS", 32)
    check_kernel(*example(1, 2, 1, 18, 20, 8, whole=True), 5, device)


@pytest.mark.usefixtures("program_order")
def test_the_number_of_tiles_held_at_once_does_not_matter(device, monkeypatch):
    from kvpolicy_kernels.row_statistics import kernel

    for rows in (16, 48):
        monkeypatch.setattr(kernel, "rows_at_once", lambda *_, rows=rows: rows)
        check_kernel(*example(2, 2, 2, 3, 25, 8, whole=True), 7, device)


def test_logits_fill_no_more_than_a_sixteenth_of_the_layer():
    from kvpolicy_kernels.row_statistics.kernel import rows_at_once

    keys = torch.empty(1, 8, 131_072, 128, dtype=torch.bfloat16, device="meta")
    assert rows_at_once(keys) == 64
    assert keys.nbytes / 8 >= 64 * 4 * 131_072
    assert rows_at_once(keys.expand(4, -1, -1, -1)) == 256
    assert rows_at_once(keys[:, :, :1024]) == 4096
    assert rows_at_once(keys.new_empty(1, 1, 10_000_000, 1)) == 16


def test_only_long_prompts_are_counted_and_in_as_many_launches(monkeypatch):
    from kvpolicy_kernels.row_statistics import counting, kernel

    monkeypatch.setattr(kernel, "LAUNCHES", counting.LAUNCHES)
    for length, way in ((4096, "_held_statistics"), (131_072, "counted_statistics")):
        called = []
        monkeypatch.setattr(kernel, way, lambda *_, called=called, **__: called.append(1))
        queries = torch.empty(1, 32, 32, 128, dtype=torch.bfloat16, device="meta")
        kernel.row_statistics(queries, queries.new_empty(1, 8, length, 128), 992, scaling=1.0)
        assert called == [1]


@pytest.mark.sampled(2, "programs", "program_order")
@pytest.mark.usefixtures("program_order")
@pytest.mark.parametrize("programs", [1, 7])
def test_what_a_launch_leaves_to_the_next_is_written_whole(programs, device, monkeypatch):
    """Memory that is not written first holds what no count can be."""
    from kvpolicy_kernels.common.triton import launch
    from kvpolicy_kernels.row_statistics import counting, kernel

    def poisoned(*sizes, **options):
        size = sizes[0] if isinstance(sizes[0], tuple) else sizes
        return torch.full(size, -(10**6), **options)

    monkeypatch.setattr(launch, "PROGRAMS", programs)
    monkeypatch.setattr(counting, "BLOCK_S", 16)
    monkeypatch.setattr(counting.torch, "empty", poisoned)
    monkeypatch.setattr(kernel, "LAUNCHES", 0)
    check_kernel(*example(2, 4, 2, 3, 71, 20, whole=True), 20, device)


@pytest.mark.sampled(2, "count", "way")
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("count", [3, 12, 25, 40])
def test_what_is_no_number_is_never_among_the_largest(count, device):
    queries, keys = example(1, 2, 2, 3, 31, 8, whole=True)
    keys[0, 0, ::3] = torch.nan
    check_kernel(queries, keys, count, device)


def test_positions_beyond_32_bits_are_summed_exactly(device, monkeypatch):
    from kvpolicy_kernels.row_statistics import kernel

    if device == "cpu":  # The interpreter takes its time for every program.
        cut = {"BLOCK_S": 4096, "CHANNELS": 16, "num_warps": 8, "num_stages": 2}
        monkeypatch.setattr(kernel, "blocks", lambda *_: cut)
    check_kernel(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 70_000, 1), 66_000, device)


@pytest.mark.parametrize(
    ("queries", "reason"), [(torch.float64, "float64"), (torch.bfloat16, "one dtype only")]
)
def test_what_the_kernel_does_not_take_runs_in_pytorch(queries, reason, device):
    given = torch.ones(1, 1, 1, 2, dtype=queries, device=device)
    keys = torch.tensor([[[[1.0, 0], [3, 0], [2, 0]]]], device=device)
    keys = keys.double() if queries == torch.float64 else keys
    with pytest.warns(KernelFallbackWarning, match=f"row_statistics runs in PyTorch.*{reason}"):
        assert row_statistics(given, keys, 1, scaling=1.0).item() == 1


# PyTorch reports waits for CUDA devices only. `python -m benchmarks.waits` counts without one.
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: a CPU is never waited for")
def test_waits_for_nothing(device):
    queries, keys = (tensor.to(device) for tensor in example(1, 8, 2, 8, 1000, 64))
    row_statistics(queries, keys, 99, scaling=1.0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        row_statistics(queries, keys, 99, scaling=1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
