import pytest
import torch

from kvpolicy_kernels import head_factors, joint_reconstruction_error, odds
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
    """A layer of two key/value heads in float64: attention, values, outputs and projections."""
    attention = torch.randn(2, 2 * groups, 20).double().softmax(-1)
    values = torch.randn(2, 2, 20, 8).double()
    output = (attention.unflatten(1, (2, groups)) @ values).flatten(1, 2)
    return attention, values, output, torch.randn(2 * groups, model_dim, 8).double()


@pytest.mark.parametrize("model_dim", [7, 16, 64])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_is_the_error_of_renormalising_without_the_position(groups, model_dim):
    attention, values, output, blocks = layer(groups, model_dim)
    stacked = blocks.unflatten(0, (2, groups)).transpose(1, 2).flatten(2)

    errors = joint_reconstruction_error(odds(attention), values, output, stacked)

    expected = leave_one_out(attention, values, blocks)
    torch.testing.assert_close(errors, expected, rtol=1e-12, atol=1e-13)


def test_the_factors_of_groups_do_for_their_projections():
    attention, values, output, blocks = (each.float() for each in layer(3, 64))
    weight = blocks.transpose(0, 1).flatten(1)
    stacked = blocks.unflatten(0, (2, 3)).transpose(1, 2).flatten(2)
    given = odds(attention), values, output
    by_factors = joint_reconstruction_error(*given, head_factors(weight, heads=2))
    expected = joint_reconstruction_error(*given, stacked)
    torch.testing.assert_close(by_factors, expected, rtol=1e-4, atol=1e-5)


def test_the_size_of_a_block_does_not_matter(monkeypatch):
    attention, values, output, _ = (each.float() for each in layer(2, 16))
    given = odds(attention), values, output, torch.randn(2, 16, 16)
    whole = joint_reconstruction_error(*given)
    monkeypatch.setattr(reference, "rows_per_block", lambda floats, device: 7)
    torch.testing.assert_close(joint_reconstruction_error(*given), whole)


def test_shapes_that_do_not_fit_are_an_error(refused):
    attention, values, output, _ = (each.float() for each in layer(2, 16))
    with refused("differ in batch or positions"):
        joint_reconstruction_error(attention[..., 1:], values, output, None)
    with refused("do not fit 2 heads of dim 16"):
        joint_reconstruction_error(attention, values, output, torch.zeros(2, 16, 8))
