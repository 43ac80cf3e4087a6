import pytest
import torch

from kvpolicy_kernels import forward_selection, query_outputs, set_error
from kvpolicy_kernels.common.pytorch import blocks
from kvpolicy_kernels.forward_selection import Queries, reference


def asked(batch=2, heads=4, count=3, positions=14, dim=8, dtype=torch.float64, **more):
    rows = torch.randn(batch, heads, count, dim, dtype=dtype) * 2
    weights = torch.rand(batch, count, dtype=dtype)
    seen = torch.tensor([positions, positions - 2, positions])[:count]
    return Queries(rows, weights, seen, scaling=0.3, **more)


def layer(dtype=torch.float64, groups=2, positions=14, dim=8):
    keys, values = torch.randn(2, 2, 2, positions, dim, dtype=dtype)
    return keys, values, torch.randn(2, 16, groups * dim, dtype=dtype)


def error_of(queries, keys, values, factors, held, *, root):
    """The objective by masking all others and renormalising, written out."""
    groups = queries.rows.shape[1] // keys.shape[1]
    logits = queries.rows @ keys.repeat_interleave(groups, 1).mT * queries.scaling
    if queries.softcap is not None:
        logits = queries.softcap * torch.tanh(logits / queries.softcap)
    later = torch.arange(keys.shape[2]) >= queries.seen[:, None]
    logits = logits.masked_fill(later, -torch.inf)
    outputs = []
    for mask in (torch.ones_like(held), held):
        shown = logits.masked_fill(~mask.repeat_interleave(groups, 1)[:, :, None], -torch.inf)
        if queries.sinks is not None:
            column = queries.sinks[:, None, None].expand(*shown.shape[:3], 1)
            shown = torch.cat([shown, column.to(shown)], -1)
        weights = shown.softmax(-1).nan_to_num(0.0)[..., : keys.shape[2]]
        outputs.append(weights @ values.repeat_interleave(groups, 1))
    change = (outputs[1] - outputs[0]).unflatten(1, (keys.shape[1], groups))
    stacked = change.transpose(2, 3).flatten(-2)
    if factors is not None:
        stacked = torch.einsum("bnmd,nrd->bnmr", stacked, factors)
    norms = stacked.norm(dim=-1)
    return torch.einsum("bm,bnm->bn", queries.weights, norms if root else norms**2)


def some(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.4


@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize(
    "more", [{}, {"softcap": 2.0}, {"sinks": torch.tensor([0.5, -1.0, 2.0, 0.0])}], ids=str
)
def test_the_error_of_a_set_is_that_of_masking_all_others(root, projected, more):
    keys, values, factors = layer()
    queries, held = asked(**more), some(2, 2, 14)
    given = queries, keys, values, factors if projected else None
    torch.testing.assert_close(
        set_error(*given, held, root=root), error_of(*given, held, root=root), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("root", [False, True])
def test_a_gain_is_what_the_error_of_the_larger_set_is_less(root):
    given = (asked(), *layer())
    held = some(2, 2, 14)
    now, gains = reference.errors(*given, held, root=root)
    torch.testing.assert_close(now, error_of(*given, held, root=root))
    for position in range(14):
        larger = held.clone()
        larger[..., position] = True
        expected = now - error_of(*given, larger, root=root)
        torch.testing.assert_close(gains[..., position], expected, rtol=1e-8, atol=1e-10)


def test_a_set_without_a_position_puts_out_nothing():
    given = (asked(), *layer())
    nothing = torch.zeros(2, 2, 14, dtype=torch.bool)
    expected = error_of(*given, nothing, root=False)
    torch.testing.assert_close(set_error(*given, nothing), expected)


def test_the_steps_of_a_selection_are_the_best_of_all_steps():
    given = (asked(), *layer())
    held = torch.zeros(2, 2, 14, dtype=torch.bool)
    held[..., -1] = True
    scores = forward_selection(*given, held, [2, 3, 4, 5])
    order = scores.argsort(descending=True)
    for count in range(1, 5):
        kept = torch.zeros_like(held).scatter(-1, order[..., :count], True)
        found = torch.stack(
            [
                error_of(*given, kept | (torch.arange(14) == position), root=False)
                for position in range(14)
            ],
            -1,
        )
        best = found.masked_fill(kept, torch.inf).argmin(-1)
        assert torch.equal(order[..., count], best)


def test_what_is_redundant_is_kept_once():
    """Six equal positions have all attention: each alone can go, all of them cannot."""
    values = torch.tensor([4.0, 4, 4, 4, 4, 4, -1, 2]).view(1, 1, 8, 1)
    keys = torch.tensor([3.0, 3, 3, 3, 3, 3, 2.5, 2.5]).view(1, 1, 8, 1)
    one = Queries(torch.ones(1, 1, 1, 1), torch.ones(1, 1), torch.tensor([8]), scaling=1.0)
    scores = forward_selection(one, keys, values, None, torch.zeros(1, 1, 8).bool(), [1, 2, 3])
    kept = scores.argsort(descending=True)[0, 0, :3].tolist()
    assert sum(position < 6 for position in kept) < 3
    assert kept[0] < 6


def test_held_positions_come_first_and_rounds_in_their_order():
    given = (asked(), *layer())
    held = some(2, 2, 14)
    held[..., 4:] = False
    scores = forward_selection(*given, held, [5, 8, 11], by_mass=True, width=3)
    assert scores.isfinite().all()
    assert scores.dtype == torch.float32
    others = scores.masked_fill(held, -torch.inf).amax(-1)
    assert (scores.masked_fill(~held, torch.inf).amin(-1) > others).all()


def test_a_round_that_starts_from_little_does_not_hide_the_order_of_the_next():
    """The most attended positions make the error larger at first, so gains are less than later."""
    given = (asked(), *layer())
    held = torch.zeros(2, 2, 14, dtype=torch.bool)
    held[..., -1] = True
    scores = forward_selection(*given, held, [5, 9, 14], by_mass=True)
    for row in scores.flatten(0, 1):
        assert len(row.unique()) == 14


def test_blocks_change_nothing(monkeypatch):
    given = (asked(), *layer())
    held = some(2, 2, 14)
    whole = reference.errors(*given, held, root=False)
    outputs = query_outputs(*given[:3])
    monkeypatch.setattr(reference, "LOGITS_BYTES", 1)
    monkeypatch.setattr(blocks, "CACHED_BYTES", 1)
    torch.testing.assert_close(query_outputs(*given[:3]), outputs)
    for one, other in zip(whole, reference.errors(*given, held, root=False), strict=True):
        torch.testing.assert_close(one, other)


def test_float32_agrees_with_float64():
    torch.manual_seed(3)
    wide = (asked(), *layer())
    narrow = (wide[0]._replace(rows=wide[0].rows.float()), *(each.float() for each in wide[1:]))
    held = some(2, 2, 14)
    for one, other in zip(
        reference.errors(*narrow, held, root=False),
        reference.errors(*wide, held, root=False),
        strict=True,
    ):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-6)


def test_arguments_that_do_not_fit_are_an_error(refused):
    queries, (keys, values, factors) = asked(), layer()
    held = some(2, 2, 14)
    with refused("counts must rise"):
        forward_selection(queries, keys, values, factors, held, [4, 4])
    with refused("differ in batch, heads or positions"):
        set_error(queries, keys, values[:, :, 1:], factors, held)
    with refused("do not fit 3 queries in 2 rows"):
        set_error(queries._replace(weights=queries.weights[:, 1:]), keys, values, factors, held)
