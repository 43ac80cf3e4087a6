"""An error target refuses the parts and settings with which it could promise nothing."""

import pytest

import kvpolicy
from kvpolicy.errors import InvalidValueError
from kvpolicy.stages.scoring import Scorer

TARGET = kvpolicy.within(0.02)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("adakv", "allocator 'adakv' .* which shares out a number .* Use allocator='uniform'"),
        ("pyramidkv", "allocator 'pyramidkv'"),
        ("layerdefensivekv", "allocator 'layerdefensivekv'"),
        ("lacache", "allocator 'lacache'"),
        ("think", "compactor 'think' .* which changes the rows .* Use compactor='gather'"),
        ("cam", "compactor 'cam'"),
        ("lookm", "compactor 'lookm'"),
        ("criticalkv", "scorer 'criticalkv' .* computes with a number of positions"),
        ("rkv", "every=128: each eviction while decoding errs anew.* Leave every=None"),
        ("tova", "every=1"),
        ("h2o", "every=1"),
    ],
)
def test_recipes_that_cannot_have_it_are_refused_by_name(recipe, message):
    with pytest.raises(InvalidValueError, match=rf"error target \(within 2 %\) .*{message}"):
        kvpolicy.recipe(recipe, budget=TARGET)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recent": 0.5}, "recent=0.5, a share of the budget"),
        ({"budget": kvpolicy.within(0.02, cap=20)}, "budget 20 is smaller than the 32 positions"),
        ({"every": 4}, "every=4"),
        ({"smoother": "chunkkv"}, "smoother 'chunkkv' .* needs all heads"),
    ],
)
def test_settings_that_need_a_number_are_refused(changes, message):
    with pytest.raises(InvalidValueError, match=message):
        kvpolicy.recipe("snapkv", **{"budget": TARGET} | changes)


class AcrossHeads(Scorer):
    window = 4
    across_heads = True

    def score(self, observation, reduce):
        return observation.folded_attention(reduce)


def test_parts_that_need_even_heads_are_refused():
    with pytest.raises(InvalidValueError, match="scorer AcrossHeads, which needs all heads"):
        kvpolicy.compose(scorer=AcrossHeads(), budget=TARGET)


def test_the_output_projection_is_needed():
    assert "within 2 %" in kvpolicy.recipe("snapkv", budget=TARGET).needs["output_weight"]
    assert kvpolicy.recipe("snapkv", budget=64).needs == {}
