import pytest
import torch

from kvpolicy_kernels import output_change
from kvpolicy_kernels.backend import KernelFallbackWarning
from kvpolicy_kernels.common.pytorch import blocks, logits
from kvpolicy_kernels.common.triton import launch
from kvpolicy_kernels.output_change import reference

# Batch, query heads, key/value heads, queries, positions, channels of keys, of values.
SHAPES = [
    (1, 1, 1, 1, 1, 4, 4),
    (2, 6, 2, 5, 17, 8, 8),
    (2, 8, 2, 12, 131, 24, 40),
    (1, 4, 2, 20, 20, 16, 8),
    (1, 2, 2, 2, 25, 192, 128),
    (1, 18, 1, 2, 70, 40, 16),
]
ZEROED = ["joint", "key", "value"]
form = pytest.mark.usefixtures("form")


def example(batch, heads, kv_heads, window, seq, dim, dim_values, dtype=torch.float32):
    queries = (torch.randn(batch, heads, window, dim) * 2).to(dtype)
    keys = torch.randn(batch, kv_heads, seq, dim).to(dtype)
    values = torch.randn(batch, kv_heads, seq, dim_values).to(dtype)
    return queries, keys, values, torch.rand(window)


def naive(rows, logits, values, weights, zeroed):
    """The sums of the authors' three scores over the queries, in float64."""
    group = rows.shape[1] // values.shape[1]
    values = values.double().repeat_interleave(group, 1)
    outputs = rows @ values
    logits = logits.masked_fill(logits == -torch.inf, 0)
    squares = (values * values).sum(-1)[:, :, None]
    apart = (values[:, :, None] - outputs[:, :, :, None]).square().sum(-1)
    of_value = rows**2 * squares
    of_key = (rows * logits) ** 2 * apart
    cross = 2 * rows**2 * logits * (squares - outputs @ values.mT)
    terms = {"value": of_value, "key": of_key, "joint": of_value + of_key + cross}
    return torch.einsum("bhws,...w->bhs", terms[zeroed], weights.double())


def check(actual, expected, rtol=5e-5):
    assert actual.dtype == torch.float32
    scale = float(expected.max())
    torch.testing.assert_close(actual.cpu().double(), expected, rtol=rtol, atol=1e-6 * scale)


@pytest.mark.sampled(3, "shape", "zeroed", "dtype", "softcap", "form")
@form
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("zeroed", ZEROED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_matches_the_definition(shape, zeroed, dtype, softcap, device, naive_logits):
    queries, keys, values, weights = example(*shape, dtype=dtype)
    rows = naive_logits(queries, keys, 0.3, softcap)
    expected = naive(rows.softmax(-1), rows, values, weights, zeroed)
    given = (each.to(device) for each in (queries, keys, values, weights))
    check(output_change(*given, zeroed, scaling=0.3, softcap=softcap), expected)


@form
@pytest.mark.parametrize("zeroed", ZEROED)
def test_the_joint_change_is_that_of_a_model_of_the_first_order(zeroed, device):
    """Outputs with a key and a value scaled by 1 - t, differentiated by t."""
    queries, keys, values, _ = example(1, 1, 1, 1, 9, 8, 8)
    expected = []
    for place in range(9):

        def output(scale, place=place):
            factors = torch.ones(9, 1, dtype=torch.float64)
            factors = torch.where(torch.arange(9)[:, None] == place, scale, factors)
            own_keys = keys[0, 0].double() * (factors if zeroed != "value" else 1)
            own_values = values[0, 0].double() * (factors if zeroed != "key" else 1)
            return (0.3 * queries[0, 0].double() @ own_keys.mT).softmax(-1) @ own_values

        one = torch.tensor(1.0, dtype=torch.float64)
        change = torch.autograd.functional.jacobian(output, one)
        expected.append(change.square().sum())
    given = (each.to(device) for each in (queries, keys, values, torch.ones(1)))
    check(output_change(*given, zeroed, scaling=0.3), torch.stack(expected)[None, None])


@form
@pytest.mark.parametrize("zeroed", ZEROED)
def test_follows_softcaps_and_sinks(zeroed, device, naive_logits, naive_rows):
    queries, keys, values, weights = example(1, 4, 2, 3, 40, 8, 8)
    sinks = torch.tensor([0.0, 3.0, -torch.inf, 1e4])
    rows, _ = naive_rows(queries, keys, 1.0, 2.0, sinks=sinks)
    expected = naive(rows, naive_logits(queries, keys, 1.0, 2.0), values, weights, zeroed)
    given = (each.to(device) for each in (queries, keys, values, weights))
    options = {"scaling": 1.0, "softcap": 2.0, "sinks": sinks.to(device)}
    check(output_change(*given, zeroed, **options), expected)


@form
@pytest.mark.parametrize("zeroed", ZEROED)
def test_every_query_may_see_all_positions_and_each_sequence_have_its_weights(
    zeroed, device, naive_logits
):
    queries, keys, values, _ = example(2, 4, 2, 3, 40, 8, 8)
    weights = torch.rand(2, 3)
    rows = torch.cat([naive_logits(one, keys, 0.3) for one in queries.split(1, dim=2)], 2)
    expected = torch.cat(
        [
            naive(rows[b, None].softmax(-1), rows[b, None], values[b, None], weights[b], zeroed)
            for b in range(2)
        ]
    )
    given = (each.to(device) for each in (queries, keys, values, weights))
    check(output_change(*given, zeroed, scaling=0.3, causal=False), expected)


@form
def test_takes_any_layout(layout, device, naive_logits):
    queries, keys, values, weights = example(2, 2, 1, 3, 40, 16, 16)
    rows = naive_logits(queries, keys, 0.5)
    expected = naive(rows.softmax(-1), rows, values, weights, "joint")
    given = (layout(each).to(device) for each in (queries, keys, values))
    strided = torch.stack([weights, weights], 1).to(device)[:, 0]
    check(output_change(*given, strided, scaling=0.5), expected)


@form
def test_a_position_with_nearly_all_attention_keeps_its_digits(device, naive_logits):
    """Its value is nearly the output: by products, the difference would be lost."""
    queries, keys, values, weights = example(1, 2, 1, 4, 60, 8, 8)
    queries[..., 0], keys[..., 0] = 1.0, 0.0
    keys[:, :, 0], keys[:, :, 0, 0] = 0.0, 14.0
    values[:, :, 0] = 100.0
    rows = naive_logits(queries, keys, 1.0)
    expected = naive(rows.softmax(-1), rows, values, weights, "key")
    given = (each.to(device) for each in (queries, keys, values, weights))
    found = output_change(*given, "key", scaling=1.0).cpu().double()
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=0)


@form
@pytest.mark.parametrize("zeroed", ZEROED)
def test_a_sequence_ignores_its_batch_mates(zeroed, device):
    given = [each.to(device) for each in example(3, 4, 2, 4, 130, 8, 8)]
    together = output_change(*given, zeroed, scaling=0.3)
    alone = output_change(*(each[1:2] for each in given[:3]), given[3], zeroed, scaling=0.3)
    assert torch.equal(alone[0], together[1])


@form
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_a_key_that_no_query_can_match_changes_nothing(device):
    queries, keys, values, weights = example(1, 2, 1, 6, 80, 8, 8)
    queries = queries.abs() + 0.1
    keys[0, 0, 78] = -torch.inf
    given = (each.to(device) for each in (queries, keys, values, weights))
    changes = output_change(*given, scaling=1.0)
    assert (changes[..., 78] == 0).all()
    assert changes.isfinite().all()


@pytest.mark.parametrize("rows", [1, 3, 10])
@pytest.mark.parametrize("zeroed", ZEROED)
def test_the_size_of_a_block_does_not_matter(rows, zeroed, monkeypatch):
    given = example(2, 6, 2, 5, 40, 8, 8)
    whole = output_change(*given, zeroed, scaling=0.3)
    monkeypatch.setattr(logits, "LOGITS_BYTES", rows * 40 * 4)
    monkeypatch.setattr(blocks, "CACHED_BYTES", 7 * 50 * 4)
    torch.testing.assert_close(output_change(*given, zeroed, scaling=0.3), whole)


@pytest.mark.usefixtures("triton_kernels", "program_order")
@pytest.mark.parametrize("programs", [1, 1000])
def test_how_positions_split_among_programs_does_not_matter(programs, monkeypatch, device):
    given = [each.to(device) for each in example(1, 4, 2, 4, 200, 16, 16)]
    expected = reference.output_change(*given, scaling=0.3)
    monkeypatch.setattr(launch, "PROGRAMS", programs)
    torch.testing.assert_close(output_change(*given, scaling=0.3), expected, rtol=5e-5, atol=1e-6)


@pytest.mark.usefixtures("triton_kernels")
def test_what_the_kernels_do_not_take_runs_in_pytorch(device):
    given = [each.to(device) for each in example(1, 2, 1, 3, 9, 16, 300)]
    with pytest.warns(KernelFallbackWarning, match="at most 256 channels, these have 300"):
        actual = output_change(*given, scaling=0.1)
    assert torch.equal(actual, reference.output_change(*given, scaling=0.1))


def test_what_does_not_fit_is_refused(refused):
    queries, keys, values, weights = example(1, 2, 1, 3, 9, 8, 8)
    with refused("differ in batch, heads or positions"):
        output_change(queries, keys, values[:, :, 1:], weights, scaling=1.0)
    with refused("zeroed must be 'joint', 'key' or 'value', not 'both'"):
        output_change(queries, keys, values, weights, "both", scaling=1.0)


def test_inputs_stay_as_they_are_even_when_they_carry_gradients():
    given = example(1, 2, 1, 4, 9, 8, 8)
    before = [each.clone() for each in given]
    changes = output_change(given[0].requires_grad_(), *given[1:], scaling=0.3)
    assert not changes.requires_grad
    for now, then in zip(given, before, strict=True):
        assert torch.equal(now, then)
