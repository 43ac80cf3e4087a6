"""Parts that cannot work together are refused when a policy is built, with the reason."""

from typing import ClassVar

import attrs
import pytest

import kvpolicy
from kvpolicy.errors import InvalidValueError
from kvpolicy.stages.allocation import UniformAllocator
from kvpolicy.stages.compaction import GatherCompactor
from kvpolicy.stages.smoothing import MeanSmoother


@attrs.frozen
class Uneven(UniformAllocator):
    uneven: ClassVar[bool] = True


@attrs.frozen
class Joining(GatherCompactor):
    across_heads: ClassVar[bool] = True


@attrs.frozen
class WholePrompt(MeanSmoother):
    prefill_only: ClassVar[bool] = True


def test_a_part_across_heads_is_refused_with_uneven_heads():
    with pytest.raises(InvalidValueError, match=r"compactor Joining needs all heads .* 'uniform'"):
        kvpolicy.compose(scorer="snapkv", allocator=Uneven(), compactor=Joining())


def test_either_is_accepted_alone():
    kvpolicy.compose(scorer="snapkv", allocator=Uneven())
    kvpolicy.compose(scorer="snapkv", compactor=Joining())


def test_a_part_for_whole_prompts_is_refused_while_decoding():
    with pytest.raises(
        InvalidValueError, match=r"every=4 .* smoother WholePrompt needs the queries"
    ):
        kvpolicy.compose(scorer="snapkv", smoother=WholePrompt(), every=4)
    kvpolicy.compose(scorer="snapkv", smoother=WholePrompt())


@pytest.mark.parametrize("recent", [1.0, -0.1, float("nan"), "half", True, -1])
def test_recent_is_a_count_or_a_share_below_one(recent):
    with pytest.raises(InvalidValueError, match="recent"):
        kvpolicy.compose(scorer="snapkv", recent=recent)


def test_a_share_of_the_budget_is_protected():
    policy = kvpolicy.compose(scorer="random", recent=0.5, sinks=2, budget=40)
    assert policy.protected == 22
    assert kvpolicy.compose(scorer="random", recent=0.5, budget=0.5).positions(100) == 50


def test_a_share_that_leaves_no_room_for_sinks_is_refused():
    with pytest.raises(InvalidValueError, match=r"sinks 6 \+ recent 36"):
        kvpolicy.compose(scorer="random", recent=0.9, sinks=6, budget=40)


@pytest.mark.parametrize("slots", [1, "yes", None])
def test_slot_positions_is_true_or_false(slots):
    with pytest.raises(InvalidValueError, match="'slot_positions' must be True or False"):
        kvpolicy.compose(scorer="snapkv", slot_positions=slots)


@attrs.frozen
class Choosy(UniformAllocator):
    def check_parts(self, parts):
        if type(parts["compactor"]) is not GatherCompactor:
            raise InvalidValueError("only what is copied can be counted. Use compactor='gather'.")


def test_a_part_may_refuse_another():
    kvpolicy.compose(scorer="snapkv", allocator=Choosy())
    with pytest.raises(InvalidValueError, match="only what is copied") as raised:
        kvpolicy.compose(scorer="snapkv", allocator=Choosy(), compactor="think")
    assert "raised by allocator Choosy" in raised.value.__notes__


def test_what_keeps_scores_from_zero_wants_scores_that_say_so():
    with pytest.raises(InvalidValueError, match=r"not for KeyNormScorer. Use scorer='lacache'"):
        kvpolicy.compose(scorer="knorm", allocator="lacache")
