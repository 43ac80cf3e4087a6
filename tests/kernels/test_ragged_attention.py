import pytest
import torch

from kvpolicy_kernels import backend, ragged_attention
from kvpolicy_kernels.common.pytorch import blocks
from kvpolicy_kernels.ragged_attention import reference, tiles

SHAPES = [
    (1, 1, 1, 1, 1, 4, 4),
    (2, 6, 2, 5, 9, 8, 8),
    (1, 8, 2, 1, 17, 16, 8),
    (3, 4, 4, 6, 6, 8, 8),
]
shapes = pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "queries", "tail", "dim", "value_dim"), SHAPES
)


def example(batch, heads, kv_heads, queries, tail, dim, value_dim, dtype=torch.float32):
    """Uneven prefixes, one of them empty, and a tail; the arguments of `ragged_attention`."""
    lengths = torch.randint(0, 12, (batch, kv_heads))
    lengths[-1, -1] = 0
    rows = int(lengths.sum())
    made = (
        torch.randn(batch, heads, queries, dim) * 3,
        torch.randn(rows, dim),
        torch.randn(rows, value_dim),
        torch.randn(batch, kv_heads, tail, dim),
        torch.randn(batch, kv_heads, tail, value_dim),
    )
    query, keys, values, tail_keys, tail_values = (each.to(dtype) for each in made)
    return query, keys, values, lengths, tail_keys, tail_values


def expected(
    query, keys, values, lengths, tail_keys, tail_values, scaling, softcap, padding, sinks=None
):
    """One softmax for each query, every sum written out, in float64."""
    batch, heads, count, _ = query.shape
    group = heads // lengths.shape[1]
    first = lengths.flatten().cumsum(0).view(lengths.shape) - lengths
    result = torch.zeros(batch, heads, count, values.shape[-1], dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            n = h // group
            own = slice(int(first[b, n]), int(first[b, n] + lengths[b, n]))
            for q in range(count):
                last = tail_keys.shape[2] - count + q + 1
                start = 0 if padding is None else int(padding[b])
                seen = torch.cat([keys[own], tail_keys[b, n, start:last]]).double()
                weighed = torch.cat([values[own], tail_values[b, n, start:last]]).double()
                logits = seen @ query[b, h, q].double() * scaling
                if softcap is not None:
                    logits = softcap * torch.tanh(logits / softcap)
                if sinks is not None:
                    logits = torch.cat([logits, sinks[h, None].double()])
                    weighed = torch.nn.functional.pad(weighed, (0, 0, 0, 1))
                if (logits > -torch.inf).any():
                    result[b, h, q] = logits.softmax(0) @ weighed
    return result


@shapes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_matches_the_definition(
    batch, heads, kv_heads, queries, tail, dim, value_dim, dtype, softcap
):
    given = example(batch, heads, kv_heads, queries, tail, dim, value_dim, dtype)

    actual = ragged_attention(*given, scaling=0.3, softcap=softcap)

    assert actual.dtype == dtype
    tolerance = (
        {"rtol": 2e-5, "atol": 2e-6} if dtype == torch.float32 else {"rtol": 8e-3, "atol": 8e-3}
    )
    torch.testing.assert_close(actual.double(), expected(*given, 0.3, softcap, None), **tolerance)


@shapes
@pytest.mark.parametrize("size", [0.0, 3.0, 1e4])
def test_a_sink_takes_its_share_and_gives_nothing(
    batch, heads, kv_heads, queries, tail, dim, value_dim, size
):
    given = example(batch, heads, kv_heads, queries, tail, dim, value_dim)
    sinks = torch.randn(heads) * size

    actual = ragged_attention(*given, scaling=0.3, softcap=2.0, sinks=sinks)

    torch.testing.assert_close(
        actual.double(), expected(*given, 0.3, 2.0, None, sinks), rtol=2e-5, atol=2e-6
    )


def test_a_query_that_sees_nothing_but_its_sink_gives_zeros():
    given = example(1, 2, 1, 4, 4, 8, 8)
    sinks, padding = torch.tensor([1.0, -torch.inf]), torch.tensor([3])
    given = (given[0], given[1][:0], given[2][:0], torch.zeros(1, 1, dtype=int), *given[4:])

    actual = ragged_attention(*given, scaling=0.3, sinks=sinks, padding=padding)

    assert (actual[:, :, :3] == 0).all()
    torch.testing.assert_close(
        actual.double(), expected(*given, 0.3, None, padding, sinks), rtol=2e-5, atol=2e-6
    )


def test_padding_in_the_tail_is_not_seen_and_sees_nothing():
    given = example(2, 4, 2, 5, 5, 8, 8)
    given[3][1] = 0  # a row that is padded has nothing before its tail
    rows = int(given[3].sum())
    given = (given[0], given[1][:rows], given[2][:rows], *given[3:])
    padding = torch.tensor([0, 3])

    actual = ragged_attention(*given, scaling=0.3, padding=padding)

    torch.testing.assert_close(
        actual.double(), expected(*given, 0.3, None, padding), rtol=2e-5, atol=2e-6
    )
    assert (actual[1, :, :3] == 0).all()


@pytest.mark.parametrize("size", [1, 100, 1000])
def test_the_size_of_a_block_does_not_matter(size, monkeypatch):
    given = example(2, 4, 2, 7, 9, 8, 8)
    whole = ragged_attention(*given, scaling=0.3)
    monkeypatch.setattr(reference, "LOGITS_BYTES", size)

    torch.testing.assert_close(ragged_attention(*given, scaling=0.3), whole)
    assert size < blocks.LOGITS_BYTES


def test_queries_in_any_layout_give_the_same():
    given = example(2, 4, 2, 5, 9, 8, 8)
    transposed = given[0].transpose(1, 2).contiguous().transpose(1, 2)

    torch.testing.assert_close(
        ragged_attention(transposed, *given[1:], scaling=0.3),
        ragged_attention(*given, scaling=0.3),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({3: torch.ones(2, 3)}, "lengths"),
        ({3: torch.ones(2, 2).int()}, "add up to 4"),
        ({4: torch.ones(2, 2, 3, 8)}, "5 queries need .* which are 3"),
        ({0: torch.ones(2, 3, 5, 8)}, "3 query heads do not divide"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change, message, refused):
    given = list(example(2, 4, 2, 5, 9, 8, 8))
    for place, value in change.items():
        given[place] = value
    with refused(message):
        ragged_attention(*given, scaling=0.3)


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
@pytest.mark.usefixtures("triton_kernels", "program_order", "longer")
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


@pytest.mark.usefixtures("triton_kernels", "program_order")
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
@pytest.mark.usefixtures("triton_kernels", "program_order", "longer")
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


@pytest.mark.usefixtures("triton_kernels", "longer")
def test_in_the_kernel_a_sink_that_is_not_a_number_spoils_its_head_alone(device):
    given = example(2, 6, 2, 1, 9, 8, 8)
    sinks = torch.full([6], -torch.inf, device=device)
    whole = ragged_attention(*on(device, given), scaling=0.3, sinks=sinks)
    sinks[2] = torch.nan

    actual = ragged_attention(*on(device, given), scaling=0.3, sinks=sinks)

    assert actual[:, 2].isnan().all()
    others = [0, 1, 3, 4, 5]
    assert torch.equal(actual[:, others], whole[:, others])


@pytest.mark.usefixtures("triton_kernels", "longer")
def test_the_kernel_caps_logits(device):
    given = example(2, 6, 2, 5, 9, 8, 8)
    wanted = reference.ragged_attention(*given, scaling=0.3, softcap=2.0, padding=None)
    actual = ragged_attention(*on(device, given), scaling=0.3, softcap=2.0)
    torch.testing.assert_close(actual.cpu(), wanted, rtol=2e-5, atol=2e-6)


@pytest.mark.sampled(3, "layout", "queries", "dtype")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.usefixtures("triton_kernels", "longer")
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
@pytest.mark.usefixtures("triton_kernels")
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


def test_what_is_not_a_number_stays_in_its_head():
    given = example(2, 4, 2, 3, 5, 8, 8)
    given[3][:] = torch.tensor([[3, 2], [1, 4]])
    given = (given[0], torch.randn(10, 8), torch.randn(10, 8), *given[3:])
    whole = ragged_attention(*given, scaling=0.3)
    given[1][5] = torch.nan

    actual = ragged_attention(*given, scaling=0.3)

    assert actual[1, :2].isnan().all()
    torch.testing.assert_close(actual[0], whole[0])
    torch.testing.assert_close(actual[1, 2:], whole[1, 2:])


@pytest.mark.usefixtures("triton_kernels")
def test_tables_of_another_type_run_in_pytorch(device):
    given = example(1, 2, 1, 1, 4, 8, 8)
    other = [given[0], given[1].half(), *given[2:]]
    wanted = reference.ragged_attention(*other, scaling=0.3, softcap=None, padding=None)
    with pytest.warns(backend.KernelFallbackWarning, match="keys and values"):
        actual = ragged_attention(*on(device, other), scaling=0.3)
    torch.testing.assert_close(actual.cpu(), wanted)


def test_doubles_are_attended_to_in_double_precision():
    draw = torch.Generator().manual_seed(0)
    queries, keys, values, prefix = (
        torch.randn(shape, generator=draw, dtype=torch.float64)
        for shape in ((1, 2, 1, 8), (1, 1, 3, 8), (1, 1, 3, 8), (2, 8))
    )
    found = ragged_attention(
        queries, prefix, prefix, torch.tensor([[2]]), keys, values, scaling=0.3, softcap=None
    )
    every_key, every_value = (torch.cat([prefix, each[0, 0]]) for each in (keys, values))
    expected = (queries @ every_key.mT * 0.3).softmax(-1) @ every_value
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
