import sys
from pathlib import Path

import pytest
import torch

from kvpolicy_kernels import backend, ragged_attention
from kvpolicy_kernels.ragged_attention import reference, tiles

sys.path.insert(0, str(Path(__file__).parent))
from ragged_rows import SHAPES, example, extra, named

pytestmark = pytest.mark.usefixtures("triton_kernels")

KERNEL_SHAPES = [
    *SHAPES,
    (1, 12, 4, 1, 20, 80, 80),
    (2, 6, 2, 1, 3, 128, 128),
    (1, 4, 1, 6, 50, 16, 32),
    (1, 20, 1, 3, 5, 64, 64),
]


@pytest.fixture
def longer(monkeypatch):
    """Let heads of a few rows have several tiles."""
    monkeypatch.setattr(tiles, "SMALLEST", 8)
    tiles.tiles_of.cache_clear()
    yield
    tiles.tiles_of.cache_clear()


def on(device, given):
    """Move what the kernel reads; lengths stay."""
    return [each if place == 3 else each.to(device) for place, each in enumerate(given)]


@pytest.mark.sampled(3, "tail", "padded", "program_order")
@pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "queries", "tail", "dim", "value_dim"), KERNEL_SHAPES
)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.usefixtures("program_order", "longer")
def test_the_kernel_matches_the_reference(
    batch, heads, kv_heads, queries, tail, dim, value_dim, padded, device
):
    given = example(batch, heads, kv_heads, queries, tail, dim, value_dim)
    padding = torch.randint(0, tail + 1, (batch,)) if padded else None
    options = {"scaling": 0.3, "softcap": None}
    wanted = reference.ragged_attention(*given, **options, padding=padding)

    actual = ragged_attention(
        *on(device, given), **options, padding=None if padding is None else padding.to(device)
    )

    torch.testing.assert_close(actual.cpu(), wanted, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "queries", "tail", "dim", "value_dim"), KERNEL_SHAPES[1:3]
)
@pytest.mark.parametrize("special", [False, True], ids=["plain", "softcap, sinks"])
@pytest.mark.usefixtures("longer")
def test_the_kernel_merges_an_extra_row(
    batch, heads, kv_heads, queries, tail, dim, value_dim, special, device
):
    given = example(batch, heads, kv_heads, queries, tail, dim, value_dim)
    row = extra(batch, kv_heads, dim, value_dim)
    options = {"scaling": 0.3, "softcap": 2.0 if special else None}
    sinks = torch.randn(heads) if special else None
    wanted = reference.ragged_attention(*given, **options, sinks=sinks, **named(row))

    actual = ragged_attention(
        *on(device, given),
        **options,
        sinks=None if sinks is None else sinks.to(device),
        **named([each.to(device) for each in row]),
    )

    torch.testing.assert_close(actual.cpu(), wanted, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.usefixtures("longer")
def test_the_kernel_adds_a_bias_to_ragged_rows(softcap, device):
    given = example(2, 6, 2, 5, 9, 8, 8)
    options = {"scaling": 0.3, "softcap": softcap}
    bias = torch.randn(len(given[1])) * 2
    wanted = reference.ragged_attention(*given, **options, ragged_bias=bias)

    actual = ragged_attention(*on(device, given), **options, ragged_bias=bias.to(device))

    torch.testing.assert_close(actual.cpu(), wanted, rtol=2e-5, atol=2e-6)


def test_the_kernel_takes_dense_rows_with_an_extra_row_alone(device):
    query, keys, values, lengths, *tail = example(2, 6, 2, 5, 9, 8, 8)
    given = [query, keys[:0], values[:0], torch.zeros_like(lengths), *tail]
    row = extra(2, 2, 8, 8)
    wanted = reference.ragged_attention(*given, scaling=0.3, **named(row))

    actual = ragged_attention(
        *on(device, given), scaling=0.3, **named([each.to(device) for each in row])
    )

    torch.testing.assert_close(actual.cpu(), wanted, rtol=2e-5, atol=2e-6)


@pytest.mark.usefixtures("program_order")
def test_the_kernel_cuts_long_heads_into_tiles(device):
    lengths = torch.tensor([[300, 64, 0], [1, 129, 40]])
    rows = int(lengths.sum())
    given = (
        torch.randn(2, 6, 1, 32), torch.randn(rows, 32), torch.randn(rows, 32), lengths,
        torch.randn(2, 3, 150, 32), torch.randn(2, 3, 150, 32),
    )  # fmt: skip
    wanted = reference.ragged_attention(*given, scaling=0.5, softcap=None, padding=None)
    actual = ragged_attention(*on(device, given), scaling=0.5)
    torch.testing.assert_close(actual.cpu(), wanted, rtol=2e-5, atol=2e-6)


@pytest.mark.sampled(2, "dtype", "padded", "program_order")
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.usefixtures("program_order", "longer")
def test_in_the_kernel_a_sink_takes_its_share_and_gives_nothing(padded, dtype, device):
    given = example(2, 6, 2, 5, 9, 8, 8, dtype)
    sinks = torch.tensor([-torch.inf, -1e4, -2, 0, 2, 1e4]).to(dtype)
    padding = torch.tensor([0, 4]) if padded else None
    wanted = reference.ragged_attention(
        *given, scaling=0.3, softcap=None, sinks=sinks, padding=padding
    )

    actual = ragged_attention(
        *on(device, given), scaling=0.3, sinks=sinks.to(device),
        padding=None if padding is None else padding.to(device),
    )  # fmt: skip

    tolerance = (2e-5, 2e-6) if dtype == torch.float32 else (2e-3, 2e-3)
    torch.testing.assert_close(actual.cpu(), wanted, rtol=tolerance[0], atol=tolerance[1])


@pytest.mark.usefixtures("longer")
def test_in_the_kernel_a_sink_that_is_not_a_number_spoils_its_head_alone(device):
    given = example(2, 6, 2, 1, 9, 8, 8)
    sinks = torch.full([6], -torch.inf, device=device)
    whole = ragged_attention(*on(device, given), scaling=0.3, sinks=sinks)
    sinks[2] = torch.nan

    actual = ragged_attention(*on(device, given), scaling=0.3, sinks=sinks)

    assert actual[:, 2].isnan().all()
    others = [0, 1, 3, 4, 5]
    assert torch.equal(actual[:, others], whole[:, others])


@pytest.mark.usefixtures("longer")
def test_the_kernel_caps_logits(device):
    given = example(2, 6, 2, 5, 9, 8, 8)
    wanted = reference.ragged_attention(*given, scaling=0.3, softcap=2.0, padding=None)
    actual = ragged_attention(*on(device, given), scaling=0.3, softcap=2.0)
    torch.testing.assert_close(actual.cpu(), wanted, rtol=2e-5, atol=2e-6)


@pytest.mark.sampled(3, "layout", "queries", "dtype")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.usefixtures("longer")
def test_the_kernel_takes_half_precision_and_any_layout(dtype, queries, layout, device):
    query, keys, values, lengths, tail_keys, tail_values = example(
        2, 6, 2, queries, 40, 80, 80, dtype
    )
    given = (query, keys, values, lengths, tail_keys, tail_values)
    wanted = reference.ragged_attention(*given, scaling=0.1, softcap=None, padding=None)
    given = (layout(query), keys, values, lengths, layout(tail_keys), layout(tail_values))

    actual = ragged_attention(*on(device, given), scaling=0.1)

    assert actual.dtype == dtype
    # Tensor cores take weights in half precision, and sums differ in order.
    torch.testing.assert_close(actual.cpu(), wanted, rtol=8e-3, atol=8e-3)


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # of the interpreter's numpy
def test_the_kernel_keeps_what_is_not_a_number_to_its_head(device):
    given = example(2, 4, 2, 1, 5, 8, 8)
    given[3][:] = torch.tensor([[3, 2], [70, 4]])
    given = (given[0], torch.randn(79, 8), torch.randn(79, 8), *given[3:])
    whole = ragged_attention(*on(device, given), scaling=0.3).cpu()
    given[1][5:75] = torch.nan
    given[2][5:75] = torch.inf

    actual = ragged_attention(*on(device, given), scaling=0.3).cpu()

    assert actual[1, :2].isnan().all()
    assert torch.equal(actual[0], whole[0])
    assert torch.equal(actual[1, 2:], whole[1, 2:])


def test_tables_of_another_type_run_in_pytorch(device):
    given = example(1, 2, 1, 1, 4, 8, 8)
    other = [given[0], given[1].half(), *given[2:]]
    wanted = reference.ragged_attention(*other, scaling=0.3, softcap=None, padding=None)
    with pytest.warns(backend.KernelFallbackWarning, match="keys and values"):
        actual = ragged_attention(*on(device, other), scaling=0.3)
    torch.testing.assert_close(actual.cpu(), wanted)
