import pytest
import torch

from kvpolicy_kernels import (
    chunking,
    head_factors,
    logits,
    odds,
    reconstruction_error,
    weighted_values,
    windowed_reconstruction_error,
)

SHAPES = [(1, 1, 1, 1, 1, 4), (2, 6, 2, 5, 17, 8), (1, 4, 4, 9, 9, 16), (2, 8, 2, 12, 67, 24)]
shapes = pytest.mark.parametrize(("batch", "heads", "kv_heads", "window", "seq", "dim"), SHAPES)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
projected = pytest.mark.parametrize("rank", [None, 3, "dim"], ids=["value_space", "low", "full"])


def make_factors(rank, heads, dim):
    return None if rank is None else torch.randn(heads, dim if rank == "dim" else rank, dim)


def naive_odds(attention):
    return attention.double() / (1 - attention.double()).clamp_min(2**-20)


def naive_norms(values, output, factors):
    """|R_h (output_h - v_i)| for values [B N S D] and output [B H *T D], as [B H *T S]."""
    group = output.shape[1] // values.shape[1]
    missing = output.double()[..., None, :] - values.double().repeat_interleave(group, 1).reshape(
        *output.shape[:2], *[1] * (output.ndim - 3), *values.shape[2:]
    )
    if factors is not None:
        missing = torch.einsum("bh...d,hrd->bh...r", missing, factors.double())
    return missing.norm(dim=-1)


@shapes
@dtypes
@projected
@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_matches_the_definition(batch, heads, kv_heads, window, seq, dim, dtype, rank, tau, layout):
    values = torch.randn(batch, kv_heads, seq, dim).to(dtype)
    attention, output = torch.rand(batch, heads, seq), torch.randn(batch, heads, dim)
    factors = make_factors(rank, heads, dim)
    expected = naive_odds(attention) * naive_norms(values, output, factors) ** tau
    actual = reconstruction_error(attention, layout(values), output, factors, tau=tau)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=2e-5, atol=1e-6)


@shapes
@dtypes
@projected
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("normalize", [False, True])
def test_the_windowed_error_matches_the_definition(
    batch, heads, kv_heads, window, seq, dim, dtype, rank, softcap, normalize, naive_logits
):
    queries = torch.randn(batch, heads, window, dim).to(dtype)
    keys = torch.randn(batch, kv_heads, seq, dim).to(dtype)
    values = torch.randn(batch, kv_heads, seq, dim + 1).to(dtype)
    weights, factors = torch.rand(window), make_factors(rank, heads, dim + 1)
    factors = torch.randn(heads, dim, dim + 1) if rank == "dim" else factors
    attention = naive_logits(queries, keys, 0.3, softcap).softmax(-1)
    output = attention @ values.double().repeat_interleave(heads // kv_heads, 1)
    norms = naive_norms(values, output, factors)
    if normalize:
        norms = norms / naive_norms(torch.zeros_like(values[:, :, :1]), output, factors)
    expected = torch.einsum("w,bhws->bhs", weights.double(), naive_odds(attention) * norms)
    if seq == 1:
        expected = torch.zeros_like(expected)  # The output is the only value.

    actual = windowed_reconstruction_error(
        queries, keys, values, weights, factors,
        scaling=0.3, softcap=softcap, normalize=normalize,
    )  # fmt: skip

    torch.testing.assert_close(actual.double(), expected, rtol=2e-4, atol=1e-5)


@shapes
@dtypes
@projected
@pytest.mark.parametrize("normalize", [False, True])
def test_a_sink_that_gives_nothing_takes_its_share_in_the_windowed_error(
    batch, heads, kv_heads, window, seq, dim, dtype, rank, normalize, naive_rows
):
    queries = torch.randn(batch, heads, window, dim).to(dtype)
    keys, values = (torch.randn(batch, kv_heads, seq, dim).to(dtype) for _ in range(2))
    weights, factors = torch.rand(window), make_factors(rank, heads, dim)
    sinks = (torch.randn(heads) * 2).to(dtype)
    attention, _ = naive_rows(queries, keys, 0.3, 2.0, sinks=sinks)
    output = attention @ values.double().repeat_interleave(heads // kv_heads, 1)
    norms = naive_norms(values, output, factors)
    if normalize:
        norms = norms / naive_norms(torch.zeros_like(values[:, :, :1]), output, factors)
    expected = torch.einsum("w,bhws->bhs", weights.double(), naive_odds(attention) * norms)

    actual = windowed_reconstruction_error(
        queries, keys, values, weights, factors,
        scaling=0.3, softcap=2.0, sinks=sinks, normalize=normalize,
    )  # fmt: skip

    torch.testing.assert_close(actual.double(), expected, rtol=2e-4, atol=1e-5)


def test_the_odds_of_a_position_give_what_a_head_with_a_sink_loses_without_it(naive_rows):
    queries, keys, values = torch.randn(1, 2, 1, 8), *torch.randn(2, 1, 1, 7, 8)
    sinks = torch.tensor([1.0, -1.0])
    rows, _ = naive_rows(queries, keys, 0.3, sinks=sinks)
    whole = rows @ values.double()
    lost = []
    for i in range(7):
        rest = [j for j in range(7) if j != i]
        without = naive_rows(queries, keys[:, :, rest], 0.3, sinks=sinks)[0]
        lost.append((without @ values[:, :, rest].double() - whole).norm(dim=-1)[..., 0])

    errors = windowed_reconstruction_error(
        queries, keys, values, torch.ones(1), None, scaling=0.3, sinks=sinks
    )

    torch.testing.assert_close(errors.double(), torch.stack(lost, -1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sink", [1e4, -1e4, 1e30, -torch.inf])
def test_the_windowed_error_takes_a_sink_of_any_size(sink):
    queries, keys, values = torch.randn(1, 2, 9, 8), *torch.randn(2, 1, 1, 9, 8)
    given = (queries, keys, values, torch.ones(9), None)
    errors = windowed_reconstruction_error(*given, scaling=0.3, sinks=torch.full([2], sink))
    if sink > 0:
        assert (errors == 0).all()
    else:
        plain = windowed_reconstruction_error(*given, scaling=0.3)
        torch.testing.assert_close(errors, plain, rtol=1e-4, atol=1e-4)


def test_the_windowed_error_takes_any_layout(layout):
    queries, keys, values = torch.randn(3, 2, 4, 9, 8)
    weights, factors = torch.rand(5), torch.randn(4, 8, 8)
    plain = windowed_reconstruction_error(
        queries[:, :, -5:], keys, values, weights, factors, scaling=0.3
    )
    viewed = windowed_reconstruction_error(
        layout(queries[:, :, -5:]), layout(keys), layout(values), weights, factors, scaling=0.3
    )
    torch.testing.assert_close(plain, viewed)


@pytest.mark.parametrize("rows", [1, 3, 5, 10])
def test_the_size_of_a_block_does_not_matter(rows, monkeypatch):
    queries, keys, values = torch.randn(1, 4, 5, 8), *torch.randn(2, 1, 2, 33, 8)
    attention, output = torch.rand(1, 4, 33), torch.randn(1, 4, 8)
    factors = torch.randn(4, 8, 8)

    def results():
        yield reconstruction_error(attention, values, output, factors)
        yield weighted_values(attention, values)
        yield windowed_reconstruction_error(
            queries, keys, values, torch.ones(5), factors, scaling=0.3
        )

    whole = list(results())
    monkeypatch.setattr(logits, "LOGITS_BYTES", rows * 33 * 4)
    monkeypatch.setattr(chunking, "CACHED_BYTES", rows * 8 * 4)
    for one, other in zip(whole, results(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_values_next_to_the_output_keep_their_digits():
    output = torch.randn(1, 1, 16)
    values = (output + 1e-3 * torch.randn(64, 16))[None]
    factors, attention = torch.randn(1, 16, 16), torch.full((1, 1, 64), 0.5)
    expected = naive_norms(values, output, factors)
    actual = reconstruction_error(attention, values, output, factors).double()
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)


@dtypes
def test_values_are_summed_by_attention(dtype, layout):
    values, attention = torch.randn(2, 2, 17, 5).to(dtype), torch.rand(2, 6, 17)
    expected = attention.double()[..., None, :] @ values.double().repeat_interleave(3, 1)[:, :, :]
    actual = weighted_values(attention, layout(values))
    torch.testing.assert_close(actual.double(), expected[:, :, 0], rtol=1e-5, atol=1e-6)


def test_slices_of_the_past_are_taken_as_they_are():
    attention, values = torch.rand(2, 4, 20), torch.randn(2, 2, 20, 6)
    output = weighted_values(attention[..., :15], values[:, :, :15])
    assert torch.equal(
        output, weighted_values(attention[..., :15].clone(), values[:, :, :15].clone())
    )
    assert torch.equal(
        reconstruction_error(attention[..., :15], values[:, :, :15], output, None),
        reconstruction_error(attention, values, output, None)[..., :15],
    )


def test_all_attention_on_one_position_stays_finite():
    attention = torch.tensor([[[1.0, 0.0]]])
    errors = reconstruction_error(attention, torch.eye(2)[None, None], torch.zeros(1, 1, 2), None)
    assert errors.flatten().tolist() == [2**20, 0]
    assert odds(torch.tensor(0.75)).item() == 3


def test_a_window_that_attends_to_one_position_stays_finite():
    keys = torch.tensor([100.0, 0, 0]).view(1, 1, 3, 1)
    queries, zeros = torch.ones(1, 1, 2, 1), torch.zeros(1, 1, 3, 2)
    for normalize in (False, True):
        errors = windowed_reconstruction_error(
            queries, keys, zeros, torch.ones(2), None, scaling=10.0, normalize=normalize
        )
        assert errors.isfinite().all()


def test_a_sequence_ignores_its_batch_mates():
    queries, keys, values = torch.randn(3, 4, 5, 8), *torch.randn(2, 3, 2, 33, 8)
    attention, output, factors = torch.rand(3, 4, 33), torch.randn(3, 4, 8), torch.randn(4, 8, 8)
    together = reconstruction_error(attention, values, output, factors)
    windowed = windowed_reconstruction_error(
        queries, keys, values, torch.ones(5), factors, scaling=0.3
    )
    for b in (slice(0, 1), slice(1, 2), slice(2, 3)):
        alone = reconstruction_error(attention[b], values[b], output[b], factors)
        assert torch.equal(alone, together[b])
        alone = windowed_reconstruction_error(
            queries[b], keys[b], values[b], torch.ones(5), factors, scaling=0.3
        )
        assert torch.equal(alone, windowed[b])


@pytest.mark.parametrize(("model_dim", "heads", "dim"), [(40, 3, 8), (5, 2, 8), (8, 1, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_factors_keep_the_norm_of_a_head_after_projection(model_dim, heads, dim, dtype):
    weight = torch.randn(model_dim, heads * dim).to(dtype)
    factors = head_factors(weight, heads)
    assert factors.shape == (heads, min(model_dim, dim), dim)
    vectors = torch.randn(heads, dim, 10).double()
    blocks = weight.double().view(model_dim, heads, dim).transpose(0, 1)
    torch.testing.assert_close(
        (factors.double() @ vectors).norm(dim=1), (blocks @ vectors).norm(dim=1),
        rtol=1e-5, atol=1e-6,
    )  # fmt: skip


def test_a_head_of_zeros_has_a_factor():
    assert head_factors(torch.zeros(6, 4), heads=2).count_nonzero() == 0


def test_shapes_that_do_not_fit_are_an_error(refused):
    with refused("7 columns do not divide among 2 heads"):
        head_factors(torch.zeros(3, 7), heads=2)
    with refused("differ in batch or positions"):
        weighted_values(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4, 5))
    with refused("do not fit 2 heads of dim 5"):
        reconstruction_error(
            torch.zeros(1, 2, 4), torch.zeros(1, 2, 4, 5), torch.zeros(1, 2, 5),
            torch.zeros(2, 5, 6),
        )  # fmt: skip
    with refused("output .* does not fit"):
        reconstruction_error(
            torch.zeros(1, 2, 4), torch.zeros(1, 2, 4, 5), torch.zeros(1, 1, 5), None
        )
    with refused("tau must be positive: 0"):
        reconstruction_error(
            torch.zeros(1, 2, 4), torch.zeros(1, 2, 4, 5), torch.zeros(1, 2, 5), None, tau=0
        )
