"""A policy keeps what it must, within its budget, and names the part that fails it."""

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import kvpolicy
from kvpolicy import Selection, errors
from kvpolicy.cache.eviction.one_layer import evicted, selected
from kvpolicy.stages.allocation import UniformAllocator
from kvpolicy.stages.grouping import reduce_groups
from kvpolicy.testing import observation, observations


@attrs.frozen
class Returns:
    """A scorer, smoother, allocator, selector and compactor that returns one thing."""

    result: object
    window = 4

    def score(self, observation, reduce):
        return self.result

    def temporal(self, values):
        return values.mean(-2)

    def spatial(self, scores, observation):
        return self.result

    def allocate(self, scores, observation, budget):
        return self.result

    def select(self, scores, budgets):
        return self.result

    def compact(self, keys, values, selection, observation):
        return self.result


@attrs.frozen
class Raises(Returns):
    """A part that raises its result."""

    def score(self, *arguments):
        raise self.result

    spatial = allocate = select = compact = score


LAYER = observation(positions=32)
FITTING = torch.zeros(1, 4, 32)


def compose(**changes):
    return kvpolicy.compose(**{"scorer": {"name": "snapkv", "window": 4}, "budget": 8} | changes)


@given(observations(window=4, min_length=5), st.data())
def test_sinks_and_recent_tokens_are_kept_within_the_budget(layer, data):
    recent, sinks = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))
    budget = data.draw(st.integers(recent + sinks + 1, 12))
    policy = compose(recent=recent, sinks=sinks, budget=budget)

    selection = selected(policy, layer)

    kept = layer.positions.gather(-1, selection.indices)
    assert selection.indices.shape[-1] == min(budget, layer.length)
    protected = (layer.positions < sinks) | (layer.positions >= layer.seen - recent)
    for row, held, must in zip(
        kept.flatten(0, 1), layer.positions.flatten(0, 1), protected.flatten(0, 1), strict=True
    ):
        assert set(held[must].tolist()) <= set(row.tolist())


@given(observations(window=4), st.integers(0, 3))
def test_a_budget_that_covers_the_prompt_changes_nothing(layer, spare):
    policy = kvpolicy.recipe("restkv", budget=layer.length + spare, recent=0)
    contents = evicted(policy, layer)
    keys, values = contents.keys.view, contents.values.view
    assert torch.equal(keys, layer.keys)
    assert torch.equal(values, layer.values)


def test_the_positions_with_the_highest_scores_are_kept():
    scores = torch.arange(32.0).flip(0).expand(1, 4, 32)
    selection = selected(compose(scorer=Returns(scores), recent=2), LAYER)
    assert selection.indices[0, 0].tolist() == [0, 1, 2, 3, 4, 5, 30, 31]


def test_eviction_copies_the_kept_keys_and_values():
    policy = compose()
    contents = evicted(policy, LAYER)
    keys, values = contents.keys.view, contents.values.view
    rows = selected(policy, LAYER).indices[..., None].expand(-1, -1, -1, 8)
    assert torch.equal(keys, LAYER.keys.gather(2, rows))
    assert torch.equal(values, LAYER.values.gather(2, rows))


def test_allocators_are_told_the_budget_in_positions():
    @attrs.frozen
    class Spy(UniformAllocator):
        told: list = attrs.field(factory=list)

        def allocate(self, scores, observation, budget):
            self.told.append((observation.budget, budget))
            return super().allocate(scores, observation, budget)

    spy = Spy()
    selected(compose(allocator=spy, budget=0.25), LAYER)
    assert spy.told == [(8, 8)]


def test_a_prompt_shorter_than_the_window_is_left_as_it_is():
    policy = compose(scorer={"name": "snapkv", "window": 16}, recent=0, budget=4)
    assert policy.keeps_all(15)
    assert not policy.keeps_all(16)


@pytest.mark.parametrize(("group", "expected"), [("mean", 2.0), ("max", 3.0), ("sum", 4.0)])
def test_query_heads_of_a_group_are_reduced(group, expected):
    scores = torch.tensor([1.0, 3.0, 1.0, 3.0]).view(1, 4, 1)
    assert reduce_groups(scores, 2, group).tolist() == [[[expected], [expected]]]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"sinks": -1}, "'sinks' must be at least 0, not -1"),
        ({"sinks": True}, "'sinks' must be an int, not True"),
        ({"recent": "half"}, "'recent' must be an int, not 'half'"),
        ({"recent": 1.5}, "a float 'recent' is a share of the budget"),
        ({"every": 0}, "'every' must be at least 1, not 0"),
        (
            {"group": "men"},
            "'group' must be one of 'mean', 'max', 'sum', not 'men'. Did you mean 'mean'?",
        ),
        ({"group_order": "first"}, "'group_order' must be one of 'before', 'after', not 'first'."),
        ({"group": None}, "'group' must be one of 'mean', 'max', 'sum', not None."),
    ],
)
def test_a_setting_that_cannot_be_is_named(setting, message):
    with pytest.raises(errors.InvalidValueError) as caught:
        compose(**setting)
    assert message in str(caught.value)


HALF, NAN = FITTING.half(), torch.full_like(FITTING, torch.nan)
COUNTS = torch.full((1, 2), 8)


def rows(*indices):
    return Selection(indices=torch.tensor(indices).expand(1, 2, -1), lengths=COUNTS)


@pytest.mark.parametrize(
    ("kind", "result", "message"),
    [
        ("scorer", None, "returned a NoneType; it must return a float32 tensor of (1, 4, 32)"),
        ("scorer", FITTING[:, :2], "returned shape (1, 2, 32); it must return shape (1, 4, 32)"),
        ("scorer", HALF, "returned dtype torch.float16; it must return dtype torch.float32"),
        ("scorer", NAN, "returned scores that are NaN or infinite; it must return finite scores"),
        ("smoother", FITTING[..., 1:], "returned shape (1, 4, 31); it must return shape"),
        ("smoother", -FITTING / 0, "returned scores that are NaN or infinite"),
        ("allocator", [8, 8], "returned [8, 8]; it must return an integer tensor of (1, 2)"),
        ("allocator", COUNTS / 2, "it must return an integer tensor"),
        ("allocator", COUNTS[0], "returned shape (2,); it must return shape (1, 2)"),
        ("allocator", -COUNTS, "returned counts from -8 to -8; it must return counts in 0 ... 32"),
        ("allocator", 9 * COUNTS, "returned counts from 72 to 72"),
        ("selector", (FITTING, COUNTS), "returned a tuple; it must return a kvpolicy.Selection"),
        ("selector", rows(*range(7)), "returned other lengths; it must return as many rows"),
        ("selector", rows(0, 1, 2, 3, 3, 5, 6, 7), "returned rows that repeat, are out of order"),
        ("selector", rows(0, 1, 2, 4, 3, 5, 6, 7), "returned rows that repeat, are out of order"),
        ("selector", rows(25, 26, 27, 28, 29, 30, 31, 32), "distinct ascending rows in 0 ... 31"),
        ("selector", rows(-1, 1, 2, 3, 4, 5, 6, 7), "distinct ascending rows in 0 ... 31"),
    ],
)
def test_a_part_that_returns_what_it_must_not_is_named(kind, result, message):
    with pytest.raises(errors.InvalidComponentError) as caught:
        selected(compose(**{kind: Returns(result)}), LAYER)
    assert str(caught.value).startswith(f"{kind} Returns returned")
    assert message in str(caught.value)


def test_the_plugin_of_a_faulty_part_is_named(install_plugin):
    install_plugin(
        "faulty",
        """
        import kvpolicy
        from kvpolicy.stages.smoothing import MeanSmoother

        class FaultySmoother(MeanSmoother):
            def spatial(self, scores, observation):
                return scores[..., 1:]

        @kvpolicy.hookimpl
        def kvpolicy_smoothers():
            return {"faulty": FaultySmoother}
        """,
    )
    with pytest.raises(errors.InvalidComponentError) as caught:
        selected(compose(smoother="faulty"), LAYER)
    assert str(caught.value) == (
        "smoother 'faulty' of plugin 'faulty' (kvpolicy-faulty 1.0) returned shape (1, 4, 31); "
        "it must return shape (1, 4, 32) (B, H, S)."
    )


@pytest.mark.parametrize("kind", ["scorer", "smoother", "allocator", "selector", "compactor"])
def test_a_part_that_raises_is_named(kind):
    cause = ZeroDivisionError("by zero")
    with pytest.raises(errors.ComponentFailedError) as caught:
        evicted(compose(**{kind: Raises(cause)}), LAYER)
    assert str(caught.value) == f"{kind} Raises raised ZeroDivisionError: by zero"
    assert caught.value.__cause__ is cause


def test_an_error_of_kvpolicy_in_a_part_stays_what_it_is_and_names_the_part():
    with pytest.raises(errors.UnsupportedModelError) as caught:
        selected(compose(scorer=Raises(errors.UnsupportedModelError("not this one"))), LAYER)
    assert caught.value.__notes__ == ["raised by scorer Raises"]


@pytest.mark.parametrize("group", ["mean", "sum"])
@pytest.mark.parametrize("groups", [3, 5, 7])
def test_heads_that_agree_tie_wherever_they_stand(group, groups):
    scores = torch.rand(1, 1, 1).expand(1, groups, 77).contiguous()
    reduced = reduce_groups(scores, 1, group)
    assert torch.equal(reduced, reduced[..., :1].expand_as(reduced))
