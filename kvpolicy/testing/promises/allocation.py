"""What every allocator promises."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from hypothesis import strategies as st
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy.stages.allocation import Allocator, ModelAllocator, SequentialAllocator
from kvpolicy.testing.promises.inputs import unchanged
from kvpolicy.testing.promises.promise import Draw, promise
from kvpolicy.testing.strategies import observations, scores


@promise("allocator")
def allocates_what_there_is(allocator: Allocator, draw: Draw) -> None:
    """Each row and head gets a whole number from 0 to S."""
    observation, scored, budget = _layer(draw)
    counts = allocator.allocate(scored, observation, budget)
    assert counts.shape == scored.shape[:2]
    assert not counts.is_floating_point()
    assert not counts.is_complex()
    low, high = (int(bound) for bound in counts.aminmax())
    assert low >= 0, f"{low} positions"
    assert high <= observation.length, f"{high} of {observation.length} positions"


@promise("allocator")
def keeps_to_the_budget(allocator: Allocator, draw: Draw) -> None:
    """Over all layers and heads of a sequence, counts average at most the budget."""
    observation, scored, budget = _layer(draw)
    layers = [
        allocator.allocate(scored.roll(layer, -1), attrs.evolve(observation, layer=layer), budget)
        for layer in range(observation.num_layers)
    ]
    average = torch.stack([counts.double().mean(1) for counts in layers]).mean(0)
    assert (average <= budget + 1e-6).all(), f"{average.tolist()} positions of a budget {budget}"


@promise("allocator")
def takes_nothing_away_when_the_budget_grows(allocator: Allocator, draw: Draw) -> None:
    """A larger budget never gives a head fewer positions."""
    observation, scored, budget = _layer(draw)
    larger = budget + draw(st.integers(1, 8))
    counts = allocator.allocate(scored, attrs.evolve(observation, budget=budget), budget)
    more = allocator.allocate(scored, attrs.evolve(observation, budget=larger), larger)
    assert (more >= counts).all(), f"{more.tolist()} at {larger}, {counts.tolist()} at {budget}"


@promise("allocator")
def allocates_for_a_sequence_as_if_alone(allocator: Allocator, draw: Draw) -> None:
    """A sequence's counts do not depend on what else is in its batch."""
    observation, scored, budget = _layer(draw)
    layers = [scored, scored.roll(1, -1)]
    shown = [attrs.evolve(observation, layer=layer, num_layers=2) for layer in range(2)]
    whole = _of_layers(allocator, layers, shown, budget)
    for row in range(len(scored)):
        own = [each[row : row + 1] for each in layers]
        alone = _of_layers(allocator, own, [each.row(row) for each in shown], budget)
        expected = [each[row].tolist() for each in whole]
        assert [each[0].tolist() for each in alone] == expected, f"row {row} alone gets others"


@promise("allocator")
def leaves_its_inputs_alone(allocator: Allocator, draw: Draw) -> None:
    """Allocating writes to none of the tensors that it is shown."""
    observation, scored, budget = _layer(draw)
    spare = _spare(draw, scored)
    with unchanged(scored, observation, spare):
        allocator.allocate(scored, observation, budget)
        if isinstance(allocator, SequentialAllocator):
            allocator.allocate_next(scored, observation, budget, spare)


@promise("allocator")
def keeps_at_every_layer_to_what_is_there_so_far(allocator: Allocator, draw: Draw) -> None:
    """One that goes layer by layer never keeps more than the budget of the layers so far."""
    if not isinstance(allocator, SequentialAllocator):
        return
    observation, scored, budget = _layer(draw)
    shown = [attrs.evolve(observation, layer=each, num_layers=4) for each in range(4)]
    factors = [draw(st.sampled_from([0.01, 0.1, 1.0, 9.0])) for _ in shown]
    layers = [scored.roll(at, -1) * factor for at, factor in enumerate(factors)]
    kept = torch.zeros(len(scored), dtype=torch.long)
    for number, counts in enumerate(_in_turn(allocator, layers, shown, budget), 1):
        assert int(counts.min()) >= 0, f"{int(counts.min())} positions"
        assert int(counts.max()) <= observation.length, f"{counts.tolist()} positions"
        kept = kept + counts.sum(1)
        most = number * counts.shape[1] * budget
        assert (kept <= most).all(), f"{kept.tolist()} in {number} layers that may keep {most}"


@promise("allocator")
def takes_nothing_away_when_more_is_left(allocator: Allocator, draw: Draw) -> None:
    """The more earlier layers have left, the more positions a head gets, or as many."""
    if not isinstance(allocator, SequentialAllocator):
        return
    observation, scored, budget = _layer(draw)
    spare = _spare(draw, scored)
    counts = allocator.allocate_next(scored, observation, budget, spare)
    larger = spare + draw(st.integers(1, 64))
    more = allocator.allocate_next(scored, observation, budget, larger)
    said = f"{more.tolist()} if {larger.tolist()} are left, {counts.tolist()} if {spare.tolist()}"
    assert (more >= counts).all(), said


@promise("allocator")
def allocates_a_layer_as_if_nothing_was_left(allocator: Allocator, draw: Draw) -> None:
    """For one that goes layer by layer, `allocate` is the first layer of a forward."""
    if not isinstance(allocator, SequentialAllocator):
        return
    observation, scored, budget = _layer(draw)
    none = torch.zeros(len(scored), dtype=torch.long)
    first = allocator.allocate_next(scored, observation, budget, none).tolist()
    alone = allocator.allocate(scored, observation, budget).tolist()
    assert alone == first, f"{alone} alone, {first} as the first layer"


def _of_layers(
    allocator: Allocator, scored: Sequence[Tensor], shown: Sequence[Observation], budget: int
) -> Sequence[Tensor]:
    if isinstance(allocator, ModelAllocator):
        return allocator.allocate_layers(scored, shown, budget)
    if isinstance(allocator, SequentialAllocator):
        return _in_turn(allocator, scored, shown, budget)
    return [allocator.allocate(*each, budget) for each in zip(scored, shown, strict=True)]


def _in_turn(
    allocator: SequentialAllocator,
    scored: Sequence[Tensor],
    shown: Sequence[Observation],
    budget: int,
) -> Sequence[Tensor]:
    """Allocate layer by layer, as a cache does."""
    found, spare = [], torch.zeros(len(scored[0]), dtype=torch.long)
    for each, observation in zip(scored, shown, strict=True):
        # The part has a copy, so that what it writes is not carried on.
        counts = allocator.allocate_next(each, observation, budget, spare.clone()).cpu()
        found.append(counts)
        spare = spare + budget * counts.shape[1] - counts.sum(1)
    return found


def _spare(draw: Draw, scored: Tensor) -> Tensor:
    """Draw what earlier layers have left, for each row."""
    rows = [draw(st.integers(0, 2 * scored[0].numel())) for _ in scored]
    return torch.tensor(rows, dtype=torch.long)


def _layer(draw: Draw) -> tuple[Observation, Tensor, int]:
    observation = draw(observations())
    batch, heads, length, _ = observation.keys.shape
    budget = draw(st.integers(1, length + 8))
    scored = draw(scores(shape=(batch, heads, length)))
    if heads > 1 and draw(st.booleans()):
        # The first head holds the most, and so is the one that is observed.
        held = torch.tensor([length, *draw(st.tuples(*[st.integers(0, length)] * (heads - 1)))])
        scored = scored.masked_fill(torch.arange(length) >= held[:, None], -torch.inf)
    return attrs.evolve(observation, budget=budget), scored, budget
