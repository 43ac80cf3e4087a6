"""What every selector promises."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from hypothesis import strategies as st
from torch import Tensor

from kvpolicy.stages.selection import Selector
from kvpolicy.testing.promises.inputs import unchanged
from kvpolicy.testing.promises.promise import Draw, promise
from kvpolicy.testing.strategies import SEEDS, scores


@promise("selector")
def keeps_exactly_the_budget(selector: Selector, draw: Draw) -> None:
    """Rows are distinct, ascending, in range, as many as the budget says; then comes S."""
    scored, budgets = _task(draw)
    length = scored.shape[-1]
    selection = selector.select(scored, budgets)
    assert torch.equal(selection.lengths.cpu(), budgets), "lengths are not the budgets"
    for row, budget in zip(selection.indices.flatten(0, 1), budgets.flatten(), strict=True):
        kept, rest = row[:budget], row[budget:]
        assert len(kept) == budget, f"{len(kept)} rows of a budget of {int(budget)}"
        assert (kept.diff() > 0).all(), f"rows repeat or are not ascending: {kept.tolist()}"
        assert ((kept >= 0) & (kept < length)).all(), f"rows out of range: {kept.tolist()}"
        assert (rest == length).all(), "beyond the budget the indices must hold S"


@promise("selector")
def keeps_what_is_protected(selector: Selector, draw: Draw) -> None:
    """Positions whose score is +inf are kept before all others."""
    scored, budgets = _task(draw)
    for head, kept, budget in _heads(selector, scored, budgets):
        protected = int(head.isinf().sum())
        assert int(head[kept].isinf().sum()) == min(protected, budget)


@promise("selector")
def keeps_the_best(selector: Selector, draw: Draw) -> None:
    """Of the positions that are not protected, one with the highest score is kept."""
    scored, budgets = _task(draw)
    for head, kept, budget in _heads(selector, scored, budgets):
        if budget > int(head.isinf().sum()) and not head.isinf().all():
            best = head[~head.isinf()].max()
            assert (head[kept] == best).any(), f"the best score, {best}, was not kept"


@promise("selector")
def breaks_ties_to_one_side(selector: Selector, draw: Draw) -> None:
    """Of equal positions always the earliest are kept, or always the latest."""
    length = draw(st.integers(2, 48))
    budget = draw(st.integers(1, length - 1))
    level = draw(st.floats(-4, 4, width=32))
    sides = {_side(selector, 8, 3, 0.0), _side(selector, length, budget, level)}
    assert len(sides) == 1, "ties go to the earlier position here, to the later one there"


@promise("selector")
def leaves_its_inputs_alone(selector: Selector, draw: Draw) -> None:
    """Selecting writes to neither scores nor budgets."""
    scored, budgets = _task(draw)
    with unchanged(scored, budgets):
        selector.select(scored, budgets)


def _task(draw: Draw) -> tuple[Tensor, Tensor]:
    """Draw scores and a budget for each head."""
    scored = draw(scores())
    generator = torch.Generator().manual_seed(draw(SEEDS))
    most = draw(st.integers(0, scored.shape[-1]))
    return scored, torch.randint(0, most + 1, scored.shape[:2], generator=generator)


def _heads(
    selector: Selector, scored: Tensor, budgets: Tensor
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Yield each head's scores, kept rows and budget."""
    indices = selector.select(scored, budgets).indices
    rows = zip(scored.flatten(0, 1), indices.flatten(0, 1), budgets.flatten(), strict=True)
    for head, row, budget in rows:
        yield head, row[:budget], int(budget)


def _side(selector: Selector, length: int, budget: int, level: float) -> str:
    flat = torch.full((1, 1, length), level)
    kept = selector.select(flat, torch.tensor([[budget]])).indices[0, 0, :budget]
    if torch.equal(kept, torch.arange(budget)):
        return "earlier"
    assert torch.equal(kept, torch.arange(length - budget, length)), f"kept {kept.tolist()}"
    return "later"
