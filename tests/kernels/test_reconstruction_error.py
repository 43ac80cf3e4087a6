import pytest
import torch

from kvpolicy_kernels import odds, reconstruction_error
from kvpolicy_kernels.common.pytorch import blocks

SHAPES = [(1, 1, 1, 1, 1, 4), (2, 6, 2, 5, 17, 8), (1, 4, 4, 9, 9, 16), (2, 8, 2, 12, 67, 24)]
shapes = pytest.mark.parametrize(("batch", "heads", "kv_heads", "window", "seq", "dim"), SHAPES)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
projected = pytest.mark.parametrize("rank", [None, 3, "dim"], ids=["value_space", "low", "full"])


def make_factors(rank, heads, dim):
    return None if rank is None else torch.randn(heads, dim if rank == "dim" else rank, dim)


@pytest.mark.sampled(4, "seq", "dtype", "rank", "tau", "layout")
@shapes
@dtypes
@projected
@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_matches_the_definition(
    batch, heads, kv_heads, window, seq, dim, dtype, rank, tau, layout, naive_odds, naive_norms
):
    values = torch.randn(batch, kv_heads, seq, dim).to(dtype)
    attention, output = torch.rand(batch, heads, seq), torch.randn(batch, heads, dim)
    factors = make_factors(rank, heads, dim)
    expected = naive_odds(attention) * naive_norms(values, output, factors) ** tau
    actual = reconstruction_error(attention, layout(values), output, factors, tau=tau)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=2e-5, atol=1e-6)


def test_values_next_to_the_output_keep_their_digits(naive_norms):
    output = torch.randn(1, 1, 16)
    values = (output + 1e-3 * torch.randn(64, 16))[None]
    factors, attention = torch.randn(1, 16, 16), torch.full((1, 1, 64), 0.5)
    expected = naive_norms(values, output, factors)
    actual = reconstruction_error(attention, values, output, factors).double()
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)


def test_all_attention_on_one_position_stays_finite():
    attention = torch.tensor([[[1.0, 0.0]]])
    errors = reconstruction_error(attention, torch.eye(2)[None, None], torch.zeros(1, 1, 2), None)
    assert errors.flatten().tolist() == [2**20, 0]
    assert odds(torch.tensor(0.75)).item() == 3


@pytest.mark.parametrize("rows", [1, 3, 5, 10])
def test_the_size_of_a_block_does_not_matter(rows, monkeypatch):
    given = torch.rand(1, 4, 33), torch.randn(1, 2, 33, 8), torch.randn(1, 4, 8)
    factors = torch.randn(4, 8, 8)
    whole = reconstruction_error(*given, factors)
    monkeypatch.setattr(blocks, "CACHED_BYTES", rows * 8 * 4)
    torch.testing.assert_close(reconstruction_error(*given, factors), whole, rtol=1e-4, atol=1e-4)


def test_slices_of_the_past_are_taken_as_they_are():
    attention, values = torch.rand(2, 4, 20), torch.randn(2, 2, 20, 6)
    output = torch.randn(2, 4, 6)
    assert torch.equal(
        reconstruction_error(attention[..., :15], values[:, :, :15], output, None),
        reconstruction_error(attention, values, output, None)[..., :15],
    )


def test_a_sequence_ignores_its_batch_mates():
    given = torch.rand(3, 4, 33), torch.randn(3, 2, 33, 8), torch.randn(3, 4, 8)
    factors = torch.randn(4, 8, 8)
    together = reconstruction_error(*given, factors)
    for b in (slice(0, 1), slice(1, 2), slice(2, 3)):
        alone = reconstruction_error(*(each[b] for each in given), factors)
        assert torch.equal(alone, together[b])


def test_shapes_that_do_not_fit_are_an_error(refused):
    attention, values, output = torch.zeros(1, 2, 4), torch.zeros(1, 2, 4, 5), torch.zeros(1, 2, 5)
    with refused("do not fit 2 heads of dim 5"):
        reconstruction_error(attention, values, output, torch.zeros(2, 5, 6))
    with refused("output .* does not fit"):
        reconstruction_error(attention, values, output[:, :1], None)
    with refused("tau must be above 0, not 0"):
        reconstruction_error(attention, values, output, None, tau=0)
    with refused("known must have a position and an error of each head"):
        reconstruction_error(
            attention, values, output, None, known=(torch.zeros(1, 1, 1).long(), output[..., :1])
        )
