import pytest
import torch

from kvpolicy_kernels import reconstruction_error
from kvpolicy_kernels.backend import KernelFallbackWarning
from kvpolicy_kernels.reconstruction_error import reference

pytestmark = pytest.mark.usefixtures("triton_kernels")

# One position; a group that is no power of two; head sizes that are none, whose channels stay in
# registers or do not; several blocks of positions and of a factor's rows; more heads than a tile.
SHAPES = [
    (1, 1, 1, 1, 4, 4),
    (2, 6, 2, 17, 8, 3),
    (2, 4, 1, 140, 80, 80),
    (1, 2, 2, 33, 130, 100),
    (1, 40, 1, 70, 8, 8),
]
shapes = pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "seq", "dim", "rank"), SHAPES, ids=str
)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def example(batch, heads, kv_heads, seq, dim, rank, dtype=torch.float32):
    values = torch.randn(batch, kv_heads, seq, dim).to(dtype)
    attention, output = torch.rand(batch, heads, seq), torch.randn(batch, heads, dim)
    return attention, values, output, torch.randn(heads, rank, dim)


def on(device, *tensors):
    return (tensor if tensor is None else tensor.to(device) for tensor in tensors)


def definition(attention, values, output, factors, tau=1.0):
    """Odds times the norm of R_h (o_h - v_i) ** tau in float64, every product written out."""
    group = output.shape[1] // values.shape[1]
    missing = output.double()[:, :, None] - values.double().repeat_interleave(group, 1)
    if factors is not None:
        missing = missing @ factors.double().mT
    odds = attention.double() / (1 - attention.double()).clamp_min(2**-20)
    return odds * missing.norm(dim=-1) ** tau


def tolerance(dtype):
    # On a GPU, values in half precision multiply in tf32, whose fractions have 10 bits.
    rounded = torch.cuda.is_available() and dtype != torch.float32
    return {"rtol": 2e-3 if rounded else 2e-6, "atol": 1e-6}


@pytest.mark.sampled(4, "seq", "dtype", "projected", "program_order")
@shapes
@dtypes
@pytest.mark.parametrize(("projected", "tau"), [(True, 1.0), (True, 0.7), (False, 1.0)])
@pytest.mark.usefixtures("program_order")
def test_the_error_matches_the_definition(
    batch, heads, kv_heads, seq, dim, rank, dtype, projected, tau, device
):
    attention, values, output, factors = example(batch, heads, kv_heads, seq, dim, rank, dtype)
    factors = factors if projected else None
    expected = definition(attention, values, output, factors, tau)
    actual = reconstruction_error(*on(device, attention, values, output, factors), tau=tau)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.cpu().double(), expected, **tolerance(dtype))


@pytest.mark.parametrize("tau", [1.0, 0.7])
@pytest.mark.usefixtures("program_order")
def test_what_is_known_better_stands_at_its_position(tau, device):
    given = [*on(device, *example(2, 6, 2, 300, 8, 3))]
    place = torch.randint(0, 300, (2, 6, 1)).to(device)
    better = torch.rand(2, 6, 1).to(device)
    expected = reconstruction_error(*given, tau=tau).scatter(-1, place, better)
    actual = reconstruction_error(*given, tau=tau, known=(place, better))
    assert torch.equal(actual, expected)


def test_any_layout_is_taken(layout, device):
    attention, values, output, factors = example(2, 4, 2, 40, 24, 24)
    strided = attention.mT.contiguous().mT.to(device), layout(values).to(device)
    expected = reference.reconstruction_error(attention, values, output, factors)
    output, turned = output.mT.contiguous().mT.to(device), factors.mT.contiguous().mT.to(device)
    actual = reconstruction_error(*strided, output, turned)
    torch.testing.assert_close(actual.cpu(), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_a_value_that_is_the_output_has_no_error(tau, device):
    attention, values, _, factors = example(1, 1, 1, 20, 16, 16)
    output = values[:, :, 7]
    actual = reconstruction_error(*on(device, attention, values, output, factors), tau=tau).cpu()
    assert actual[0, 0, 7] == 0
    assert (actual[0, 0, :7] > 0).all()


def test_values_next_to_the_output_keep_their_digits(device):
    attention, _, output, factors = example(1, 1, 1, 64, 16, 16)
    values = output[:, :, None] + 1e-3 * torch.randn(1, 1, 64, 16)
    expected = definition(attention, values, output, factors)
    actual = reconstruction_error(*on(device, attention, values, output, factors))
    torch.testing.assert_close(actual.cpu().double(), expected, rtol=2e-6, atol=0)


def test_all_attention_on_one_position_stays_finite(device):
    attention = torch.tensor([[[1.0, 0.0, 1 - 2**-24]]])
    values = torch.eye(3)[None, None]
    errors = reconstruction_error(*on(device, attention, values, torch.zeros(1, 1, 3)), None)
    expected = reference.reconstruction_error(attention, values, torch.zeros(1, 1, 3), None)
    assert errors[0, 0, :2].tolist() == [2**20, 0]
    torch.testing.assert_close(errors.cpu(), expected)


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_a_value_that_is_no_number_spoils_its_own_error_only(tau, device):
    attention, values, output, factors = example(1, 2, 1, 20, 16, 16)
    values[0, 0, 3, 5] = torch.nan
    actual = reconstruction_error(*on(device, attention, values, output, factors), tau=tau).cpu()
    assert actual[..., 3].isnan().all()
    assert actual.isnan().sum() == 2


def test_slices_of_the_past_are_taken_as_they_are(device):
    attention, values, output, factors = on(device, *example(2, 4, 2, 20, 8, 8))
    past = attention[..., :15], values[:, :, :15]
    whole = reconstruction_error(attention, values, output, factors)
    assert torch.equal(reconstruction_error(*past, output, factors), whole[..., :15])


def test_a_sequence_ignores_its_batch_mates(device):
    attention, values, output, factors = on(device, *example(3, 4, 2, 150, 8, 8))
    errors = reconstruction_error(attention, values, output, factors)
    alone = slice(1, 2)
    assert torch.equal(
        errors[alone], reconstruction_error(attention[alone], values[alone], output[alone], factors)
    )


def test_what_the_kernels_do_not_take_runs_in_pytorch(device):
    attention, values, output, factors = on(device, *example(1, 2, 1, 5, 4, 4))
    with pytest.warns(KernelFallbackWarning, match="does not compute in torch.float64"):
        actual = reconstruction_error(attention, values.double(), output, factors)
    assert torch.equal(actual, reference.reconstruction_error(attention, values, output, factors))
