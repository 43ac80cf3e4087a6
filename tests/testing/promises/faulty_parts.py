"""Tests of the promises of one kind of part, and the faulty parts that several modules use."""

import itertools

import pytest

from kvpolicy import errors, testing
from kvpolicy.stages.allocation import UniformAllocator
from kvpolicy.stages.selection import TopKSelector
from kvpolicy.testing.promises import PROMISES

COUNTER = itertools.count()


class Scorer:
    """A blameless scorer, of which every mutant changes one thing."""

    window = 4

    def score(self, observation, reduce):
        return observation.folded_attention(reduce)


class Counts(Scorer):
    def score(self, observation, reduce):
        scores = super().score(observation, reduce)
        return scores.roll(7 * next(COUNTER), -1)


class GenerousAllocator(UniformAllocator):
    def allocate(self, scores, observation, budget):
        return super().allocate(scores, observation, 2 * budget)


class WorstSelector(TopKSelector):
    def select(self, scores, budgets):
        return super().select(scores.where(scores.isinf(), -scores), budgets)


def promises_catch(kind, faulty):
    """Return a test: each promise of a kind catches the part that `faulty` has under its name."""
    cases = [
        pytest.param(promise, faulty[promise.name], id=f"{kind}-{promise.name}")
        for promise in PROMISES[kind]
    ]

    @pytest.mark.parametrize(("promise", "part"), cases)
    def test(promise, part):
        with pytest.raises((AssertionError, AttributeError, errors.KvpolicyError)):
            promise(part)

    return test


def promises_hold(kind, blameless):
    """Return a test: a part without a fault keeps every promise of its kind."""

    @pytest.mark.parametrize("part", [pytest.param(blameless, id=kind)])
    def test(part):
        testing.check(kind, part)

    return test
