import pytest
import torch

from kvpolicy_kernels import head_factors, joint_reconstruction_error
from kvpolicy_kernels.joint_reconstruction_error import reference


def leave_one_out(attention, values, blocks):
    """||sum_h W_h (o_h without i - o_h)||, by renormalising every head without i: [B N S].

    `attention` is [B H S], `values` [B N S D] and `blocks` W_h [H M D], all in float64.
    """
    groups = attention.shape[1] // values.shape[1]
    repeated = values.repeat_interleave(groups, dim=1)
    output = attention[..., None, :] @ repeated
    errors = []
    for position in range(values.shape[2]):
        rest = attention.clone()
        rest[..., position] = 0
        rest = rest / rest.sum(-1, keepdim=True)
        change = (rest[..., None, :] @ repeated - output).squeeze(-2)
        behind = torch.einsum("hmd,bhd->bhm", blocks, change)
        errors.append(behind.unflatten(1, (-1, groups)).sum(2).norm(dim=-1))
    return torch.stack(errors, dim=-1)


def layer(groups, model_dim):
    """A layer of two key/value heads in float64: attention, values and projections."""
    attention = torch.randn(2, 2 * groups, 20).double().softmax(-1)
    values = torch.randn(2, 2, 20, 8).double()
    return attention, values, torch.randn(2 * groups, model_dim, 8).double()


@pytest.mark.parametrize("model_dim", [7, 16, 64])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_is_the_error_of_renormalising_without_the_position(groups, model_dim):
    attention, values, blocks = layer(groups, model_dim)
    stacked = blocks.unflatten(0, (2, groups)).transpose(1, 2).flatten(2)

    errors = joint_reconstruction_error(attention, values, stacked)

    expected = leave_one_out(attention, values, blocks)
    torch.testing.assert_close(errors, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("trace", [1e-3, 1e-8, 1e-12])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_sink_keeps_its_digits_in_float32(groups, trace):
    """Every head gives all but a trace to a position; two of a group of four to the same one."""
    attention, values, blocks = layer(groups, 16)
    sinks = torch.tensor([0, 7, 7, 3])[:groups].repeat(2)[None, :, None].expand(2, -1, 1)
    attention = trace * attention
    attention = attention.scatter(-1, sinks, 0).scatter(-1, sinks, 1.0)
    attention /= attention.sum(-1, keepdim=True)
    stacked = blocks.unflatten(0, (2, groups)).transpose(1, 2).flatten(2)
    expected = leave_one_out(attention, values, blocks)

    errors = joint_reconstruction_error(attention.float(), values.float(), stacked.float())

    at = sinks.unflatten(1, (2, groups))[..., 0]
    found, wanted = errors.double().gather(-1, at), expected.gather(-1, at)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)
    assert (found > 0.1).all()


def test_the_factors_of_groups_do_for_their_projections():
    attention, values, blocks = (each.float() for each in layer(3, 64))
    weight = blocks.transpose(0, 1).flatten(1)
    stacked = blocks.unflatten(0, (2, 3)).transpose(1, 2).flatten(2)
    given = attention, values
    by_factors = joint_reconstruction_error(*given, head_factors(weight, heads=2))
    expected = joint_reconstruction_error(*given, stacked)
    torch.testing.assert_close(by_factors, expected, rtol=1e-4, atol=1e-5)


def test_the_size_of_a_block_does_not_matter(monkeypatch):
    attention, values, _ = (each.float() for each in layer(2, 16))
    given = attention, values, torch.randn(2, 16, 16)
    whole = joint_reconstruction_error(*given)
    monkeypatch.setattr(reference, "rows_per_block", lambda floats, device: 7)
    torch.testing.assert_close(joint_reconstruction_error(*given), whole)


def test_shapes_that_do_not_fit_are_an_error(refused):
    attention, values, _ = (each.float() for each in layer(2, 16))
    with refused("differ in batch or positions"):
        joint_reconstruction_error(attention[..., 1:], values, None)
    with refused("do not fit 2 heads of dim 16"):
        joint_reconstruction_error(attention, values, torch.zeros(2, 16, 8))
