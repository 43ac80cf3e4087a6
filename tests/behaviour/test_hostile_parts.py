"""A part or plugin that does what it must not is named, and harms nobody else."""

from __future__ import annotations

import sys

import attrs
import pytest
import torch

import kvpolicy
from kvpolicy import Selection, errors
from kvpolicy.cache.eviction.one_layer import evicted
from kvpolicy.stages.allocation import UniformAllocator
from kvpolicy.stages.compaction import GatherCompactor
from kvpolicy.stages.selection import TopKSelector
from kvpolicy.stages.smoothing import MeanSmoother
from kvpolicy.testing import observation

LAYER = observation(positions=32)
FULL = torch.zeros(1, 4, 32)
COUNTS = torch.full((1, 2), 8)
ROWS = torch.arange(24, 32).expand(1, 2, -1)


@attrs.frozen
class Part:
    """Any part: works until `does` has it do something else, given all it was given."""

    kind: str
    does: object
    window = 4

    def _either(self, kind, usual, *given):
        return self.does(*given) if kind == self.kind else usual(*given)

    def score(self, observation, reduce):
        def usual(observation, reduce):
            return observation.folded_attention(reduce)

        return self._either("scorer", usual, observation, reduce)

    def temporal(self, values):
        return self._either("temporal", MeanSmoother().temporal, values)

    def spatial(self, scores, observation):
        return self._either("smoother", MeanSmoother().spatial, scores, observation)

    def allocate(self, scores, observation, budget):
        return self._either("allocator", UniformAllocator().allocate, scores, observation, budget)

    def select(self, scores, budgets):
        return self._either("selector", TopKSelector().select, scores, budgets)

    def compact(self, keys, values, selection, observation):
        given = (keys, values, selection, observation)
        return self._either("compactor", GatherCompactor().compact, *given)


def composed(kind, does, **settings):
    """A policy one part of which is hostile."""
    parts = {"scorer": {"name": "snapkv", "window": 4}, "budget": 8}
    slot = "smoother" if kind in ("temporal", "weights") else kind
    return kvpolicy.compose(**parts | {slot: Part(kind, does)} | settings)


def refusal(kind, does):
    """What is said of a part that does so."""
    with pytest.raises(errors.KvpolicyError) as caught:
        evicted(composed(kind, does), LAYER)
    return str(caught.value)


VERBS = {
    "scorer": "score",
    "temporal": "temporal",
    "smoother": "spatial",
    "allocator": "allocate",
    "selector": "select",
    "compactor": "compact",
}
KINDS = tuple(VERBS)


def fail(*given):
    raise ZeroDivisionError("on purpose")


def leave(*given):
    sys.exit(3)


class MuteError(Exception):
    def __str__(self):
        raise RuntimeError("no reason either")


def fail_mutely(*given):
    raise MuteError


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("does", "told"),
    [
        (fail, "ZeroDivisionError: on purpose"),
        (leave, "SystemExit: 3"),
        (fail_mutely, "MuteError: it does not say why"),
    ],
    ids=["raises", "exits", "raises what cannot be printed"],
)
def test_a_part_that_raises_is_named_whatever_it_raises(kind, does, told):
    slot = "smoother" if kind == "temporal" else kind
    assert refusal(kind, does) == f"{slot} Part raised {told}"


def test_an_interrupt_is_no_fault_of_a_part():
    def interrupt(*given):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evicted(composed("scorer", interrupt), LAYER)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("result", [None, 3, "text", [], torch.zeros(0), (None, None)], ids=str)
def test_a_part_that_returns_something_else_is_named(kind, result):
    slot = "smoother" if kind == "temporal" else kind
    assert refusal(kind, lambda *given: result).startswith(f"{slot} Part returned ")


META = torch.device("meta")


@pytest.mark.parametrize(
    ("kind", "result", "message"),
    [
        ("scorer", FULL.to(META), "a tensor on meta; it must return a tensor on cpu"),
        ("scorer", FULL.to_sparse(), "a tensor of layout torch.sparse_coo"),
        ("scorer", FULL[0], "shape (4, 32)"),
        ("scorer", FULL.bool(), "dtype torch.bool"),
        ("scorer", FULL * 1j, "dtype torch.complex64"),
        ("smoother", FULL.to(META), "a tensor on meta"),
        ("temporal", FULL[..., 1:], "shape (1, 4, 31); it must return shape (1, 4, 32)"),
        ("temporal", FULL.to(META), "a tensor on meta"),
        ("allocator", COUNTS.to(META), "a tensor on meta"),
        ("allocator", COUNTS.bool(), "an integer tensor"),
        ("allocator", COUNTS.neg(), "counts from -8 to -8"),
        ("allocator", COUNTS * 2**40, "counts from 8796093022208"),
        ("selector", Selection(indices=None, lengths=COUNTS), "indices of NoneType"),
        ("selector", Selection(indices=ROWS, lengths=8), "lengths of int"),
        ("selector", Selection(indices=ROWS, lengths=COUNTS.float()), "lengths of torch.float32"),
        ("selector", Selection(indices=ROWS.int(), lengths=COUNTS), "indices of torch.int32"),
        ("selector", Selection(indices=ROWS[0], lengths=COUNTS), "indices of (2, 8) and lengths"),
        ("selector", Selection(indices=ROWS, lengths=COUNTS[0]), "and lengths of (2,)"),
        ("selector", Selection(indices=ROWS.to(META), lengths=COUNTS), "a tensor on meta"),
        ("selector", Selection(indices=ROWS.flip(-1), lengths=COUNTS), "out of order"),
        ("selector", Selection(indices=ROWS + 2**40, lengths=COUNTS), "out of range"),
        ("selector", Selection(indices=ROWS - 2**40, lengths=COUNTS), "out of range"),
        ("selector", Selection(indices=ROWS, lengths=COUNTS - 1), "other lengths"),
        ("compactor", (ROWS, ROWS), "torch.int64 (1, 2, 8)"),
    ],
)
def test_what_a_part_must_not_return_is_named(kind, result, message):
    said = refusal(kind, lambda *given: result)
    slot = "smoother" if kind == "temporal" else kind
    assert said.startswith(f"{slot} Part returned ")
    assert message in said


def test_rows_beyond_the_budget_are_refused_and_spare_places_are_cut_off():
    def beyond(filling):
        return lambda scores, budgets: Selection(
            indices=torch.nn.functional.pad(ROWS, (0, 5), value=filling), lengths=COUNTS
        )

    assert "rows that repeat" in refusal("selector", beyond(-1))
    assert "rows that repeat" in refusal("selector", beyond(31))
    contents = evicted(composed("selector", beyond(32)), LAYER)
    keys, values = contents.keys.view, contents.values.view
    assert torch.equal(keys, LAYER.keys[:, :, 24:])
    assert torch.equal(values, LAYER.values[:, :, 24:])


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_a_compactor_that_returns_what_is_not_finite_is_named(which, number):
    def spoilt(*given):
        kept = GatherCompactor().compact(*given)
        kept[which][0, 0, 0, 0] = number
        return kept

    assert "numbers that are NaN or infinite" in refusal("compactor", spoilt)


def test_what_is_not_finite_in_the_model_is_no_fault_of_the_compactor():
    values = LAYER.values.clone()
    values[0, 0, 31, 0] = torch.inf
    layer = attrs.evolve(LAYER, values=values)
    kept = evicted(kvpolicy.recipe("streamingllm", budget=8), layer).values.view
    assert kept[0, 0, -1, 0] == torch.inf


def at(index, name=None):
    """Find a tensor among what is given."""
    return lambda *given: given[index] if name is None else getattr(given[index], name)


SHOWN = ("queries", "keys", "values", "output_weight")


@pytest.mark.parametrize(
    ("kind", "place", "name"),
    [
        *(("scorer", at(0, name), name) for name in SHOWN),
        *(("smoother", at(1, name), name) for name in SHOWN),
        *(("allocator", at(1, name), name) for name in SHOWN),
        *(("compactor", at(3, name), name) for name in SHOWN),
        ("temporal", at(0), "its input"),
        ("smoother", at(0), "its input"),
        ("allocator", at(0), "its input"),
        ("selector", at(0), "its input"),
        ("selector", at(1), "its input"),
        ("compactor", at(0), "its input"),
        ("compactor", at(1), "its input"),
        ("compactor", at(2, "indices"), "indices"),
        ("compactor", at(2, "lengths"), "lengths"),
    ],
)
def test_a_part_that_writes_into_what_it_is_shown_is_named(kind, place, name):
    def spoil(*given):
        tensor = place(*given)
        tensor[(0,) * tensor.dim()] = 5
        return getattr(Part("none", None), VERBS[kind])(*given)

    layer = attrs.evolve(LAYER, **{name: getattr(LAYER, name).clone() for name in SHOWN})
    slot = "smoother" if kind == "temporal" else kind
    with pytest.raises(errors.InvalidComponentError) as caught:
        evicted(composed(kind, spoil), layer)
    assert f"{slot} Part wrote into" in str(caught.value)
    assert name in str(caught.value)
    assert ("load the model again" in str(caught.value)) == (name == "output_weight")
