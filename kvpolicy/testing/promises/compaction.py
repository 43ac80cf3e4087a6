"""What every compactor promises."""

from __future__ import annotations

import attrs
import torch
from hypothesis import strategies as st
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy.pipeline.capabilities import is_fitting_values
from kvpolicy.stages.compaction import Compactor, GatherCompactor, KeepsRemainder
from kvpolicy.stages.selection import Selection, TopKSelector
from kvpolicy.testing.promises.inputs import unchanged
from kvpolicy.testing.promises.promise import Draw, promise
from kvpolicy.testing.samples import normal
from kvpolicy.testing.shards import in_shards
from kvpolicy.testing.strategies import SEEDS, observations


@promise("compactor")
def changes_nothing_in_a_full_selection(compactor: Compactor, draw: Draw) -> None:
    """Keeping every position gives back the same keys and values, bit for bit."""
    observation = draw(observations())
    every = Selection.everything(observation)
    keys, values = compactor.compact(observation.keys, observation.values, every, observation)
    assert torch.equal(keys, observation.keys)
    assert torch.equal(values, observation.values)


@promise("compactor")
def writes_a_row_for_each_that_is_kept(compactor: Compactor, draw: Draw) -> None:
    """Keys and values come out finite, in their own dtype, as many as are kept."""
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    observation = draw(observations(dtype=dtype))
    selection = _selection(observation, draw)
    kept = selection.indices.shape
    for got, given in zip(
        compactor.compact(observation.keys, observation.values, selection, observation),
        (observation.keys, observation.values),
        strict=True,
    ):
        assert got.shape == (*kept, given.shape[-1])
        assert got.dtype == given.dtype
        assert got.isfinite().all(), "rows beyond a head's length must be finite as well"


@promise("compactor")
def builds_each_row_on_the_one_that_is_kept(compactor: Compactor, draw: Draw) -> None:
    """Where evicted rows are zero, a row is the kept one or less of it, channel by channel.

    So rows are in the order of the selection, and all that a compactor adds is of evicted rows. Of
    a compactor with `fits_values`, this is asked of keys alone.
    """
    observation = draw(observations())
    selection = _selection(observation, draw)
    valid = (selection.indices < observation.length)[..., None]
    kept = torch.ones(observation.keys.shape[:3], dtype=torch.bool)
    evicted = selection.evicted(observation.length)
    kept = torch.nn.functional.pad(kept, (0, 1)).scatter(2, evicted, False)[..., :-1, None]
    keys, values = observation.keys * kept, observation.values * kept
    observation = attrs.evolve(observation, keys=keys, values=values)
    rows = GatherCompactor().compact(keys, values, selection, observation)
    compacted = compactor.compact(keys, values, selection, observation)
    asked = 1 if is_fitting_values(compactor) else 2
    for got, own in zip(compacted[:asked], rows, strict=False):
        share = (got / own)[valid.expand_as(got)]
        assert ((share >= 0) & (share <= 1 + 1e-5)).all(), "rows are out of order"


@promise("compactor")
def compacts_heads_of_several_processes(compactor: Compactor, draw: Draw) -> None:
    """Where each process has some heads of the layer, rows are those of one that has them all.

    All heads keep equally many: others are compacted one by one.
    """
    observation = draw(observations())
    kept = draw(st.integers(1, observation.length))
    scores = normal(draw(SEEDS), *observation.keys.shape[:3])
    selection = TopKSelector().select(scores, torch.full(scores.shape[:2], kept))

    def compacted(shown: Observation, heads: slice, own: slice) -> Tensor:
        selected = Selection(indices=selection.indices[:, own], lengths=selection.lengths[:, own])
        return torch.cat(compactor.compact(shown.keys, shown.values, selected, shown), -1)

    whole = compactor.compact(observation.keys, observation.values, selection, observation)
    found = in_shards(observation, compacted)
    torch.testing.assert_close(found, torch.cat(whole, -1), rtol=1e-4, atol=1e-5)


@promise("compactor")
def keeps_a_remainder_of_what_is_evicted(compactor: Compactor, draw: Draw) -> None:
    """A remainder is finite and in float32, the same twice, and that of any process's heads.

    Where all evicted rows of a head are equal, it is that row.
    """
    if not isinstance(compactor, KeepsRemainder):
        return
    observation = draw(observations(dtype=draw(st.sampled_from([torch.float32, torch.bfloat16]))))
    selection = _selection(observation, draw)
    tables = observation.keys, observation.values
    with unchanged(observation, selection.indices, selection.lengths):
        first = compactor.remainder(*tables, selection, observation)
    second = compactor.remainder(*tables, selection, observation)
    for got, again, given in zip(first, second, tables, strict=True):
        assert got.shape == (*given.shape[:2], given.shape[-1])
        assert got.dtype == torch.float32
        assert got.isfinite().all(), "a head that evicts nothing must have finite numbers as well"
        assert torch.equal(got, again)
    for head in range(tables[0].shape[1]):
        own = slice(head, head + 1)
        selected = Selection(indices=selection.indices[:, own], lengths=selection.lengths[:, own])
        alone = observation.head(head)
        found = compactor.remainder(alone.keys, alone.values, selected, alone)
        for got, whole in zip(found, first, strict=True):
            torch.testing.assert_close(got, whole[:, own], rtol=1e-4, atol=1e-5)
    same_keys, same_values = (table[:, :, :1].expand_as(table) for table in tables)
    evicts = (selection.lengths < observation.length)[..., None]
    found = compactor.remainder(same_keys, same_values, selection, observation)
    for got, row in zip(found, (same_keys, same_values), strict=True):
        torch.testing.assert_close(got * evicts, row[:, :, 0].float() * evicts)


@promise("compactor")
def gives_away_what_it_returns(compactor: Compactor, draw: Draw) -> None:
    """What it returned stays as it is when the next layer is compacted: it is held from then on."""
    observation = draw(observations())
    selection = _selection(observation, draw)
    layers = [observation, attrs.evolve(observation, keys=-observation.keys)]
    first, second = (
        compactor.compact(layer.keys, layer.values, selection, layer) for layer in layers
    )
    again = compactor.compact(observation.keys, observation.values, selection, observation)
    for got, expected in zip(first, again, strict=True):
        assert torch.equal(got, expected), "a result was written over by a later one"
    assert first[0].data_ptr() != second[0].data_ptr(), "two results share their memory"


@promise("compactor")
def leaves_its_inputs_alone(compactor: Compactor, draw: Draw) -> None:
    """Compacting writes to neither keys nor values nor the selection."""
    observation = draw(observations())
    selection = _selection(observation, draw)
    with unchanged(observation, selection.indices, selection.lengths):
        compactor.compact(observation.keys, observation.values, selection, observation)


def _selection(observation: Observation, draw: Draw) -> Selection:
    """Draw a selection of at least one row, with a length of its own for each head."""
    seed = draw(SEEDS)
    shape = observation.keys.shape[:3]
    generator = torch.Generator().manual_seed(seed)
    budgets: Tensor = torch.randint(1, shape[2] + 1, shape[:2], generator=generator)
    return TopKSelector().select(normal(seed, *shape), budgets)
