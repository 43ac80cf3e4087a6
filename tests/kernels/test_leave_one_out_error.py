import pytest
import torch

from kvpolicy_kernels import leave_one_out_error, reconstruction_error


def without_each(attention, values, factors, learned_sink=0.0):
    """||R_h (o_h without i - o_h)|| by renormalising each head without i, in float64: [B H S]."""
    groups = attention.shape[1] // values.shape[1]
    repeated = values.double().repeat_interleave(groups, dim=1)
    whole = attention[..., None, :] @ repeated
    errors = []
    for position in range(values.shape[2]):
        rest = attention.clone()
        rest[..., position] = 0
        rest = rest / (rest.sum(-1, keepdim=True) + learned_sink)
        change = (rest[..., None, :] @ repeated - whole)[..., 0, :]
        errors.append((factors.double() @ change[..., None])[..., 0].norm(dim=-1))
    return torch.stack(errors, dim=-1)


def layer(trace, learned_sink=0.0):
    """Four heads that give all but a trace to one position, in float64; values; factors."""
    attention = trace * torch.rand(2, 4, 30, dtype=torch.float64)
    place = torch.tensor([0, 5, 29, 0]).view(1, 4, 1).expand(2, 4, 1)
    attention = attention.scatter(-1, place, 1.0)
    attention *= (1 - learned_sink) / attention.sum(-1, keepdim=True)
    return attention, torch.randn(2, 2, 30, 8), torch.randn(4, 8, 8), place


@pytest.mark.parametrize("trace", [1.0, 1e-4, 1e-7, 1e-12])
def test_a_sink_is_worth_what_its_loss_costs_however_little_the_others_have(trace):
    attention, values, factors, place = layer(trace)
    expected = without_each(attention, values, factors).gather(-1, place)

    errors = leave_one_out_error(attention.float(), values, factors).gather(-1, place)

    torch.testing.assert_close(errors.double(), expected, rtol=1e-5, atol=0)
    assert (errors > 0.1).all()


def test_its_odds_lose_all_digits():
    """Why: the same sinks by a / (1 - a) ||R (o - v)|| in float32."""
    attention, values, factors, place = layer(1e-9)
    expected = without_each(attention, values, factors).gather(-1, place)
    output = (attention.unflatten(1, (2, 2)) @ values.double()).flatten(1, 2).float()
    errors = reconstruction_error(attention.float(), values, output, factors).gather(-1, place)
    assert ((errors - expected).abs() > 0.5 * expected).any()


def test_a_learned_sink_is_one_of_the_others():
    attention, values, factors, _ = layer(0.3, learned_sink=0.25)
    expected = without_each(attention, values, factors, learned_sink=0.25)
    errors = leave_one_out_error(attention.float(), values, factors, learned_sinks=True)
    torch.testing.assert_close(errors.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("summed", [0, 20, None])
def test_is_the_error_by_odds_where_no_weight_is_near_1(tau, summed):
    attention = torch.randn(2, 4, 30).softmax(-1)
    values, factors = torch.randn(2, 2, 30, 8), torch.randn(4, 8, 8)
    within = slice(0, summed)
    output = (attention[..., within].unflatten(1, (2, 2)) @ values[:, :, within]).flatten(1, 2)
    expected = reconstruction_error(attention, values, output, factors, tau=tau)
    errors = leave_one_out_error(attention, values, factors, summed=summed, tau=tau)
    torch.testing.assert_close(errors, expected, rtol=2e-4, atol=1e-6)


def test_all_attention_on_one_position_stays_finite():
    attention = torch.tensor([[[1.0, 0.0]]])
    for tau in (0.5, 1.0, 3.0):
        errors = leave_one_out_error(attention, torch.eye(2)[None, None], None, tau=tau)
        assert errors.isfinite().all()
        assert errors[0, 0, 1] == 0


def test_a_sum_over_positions_that_are_not_there_is_an_error(refused):
    with refused("summed must be in 0 ... 2, the positions, not 3"):
        leave_one_out_error(torch.ones(1, 1, 2) / 2, torch.ones(1, 1, 2, 1), None, summed=3)
