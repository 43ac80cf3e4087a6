import pytest

import kvpolicy
from kvpolicy.vllm.rounding import Rounding


@pytest.mark.parametrize("block", [16, 32])
@pytest.mark.parametrize("budget", [64, 100, 0.25])
def test_at_least_the_budget_is_kept_and_less_than_a_block_more(budget, block):
    policy = kvpolicy.recipe("snapkv", budget=budget)
    rounding = Rounding.of(policy)
    for prompt in range(1, 700):
        least = min(prompt, policy.positions(prompt))
        kept = rounding.kept(prompt, block=block)
        assert (prompt - kept) % block == 0
        assert least <= kept < least + block or kept == prompt


def test_nothing_is_evicted_from_a_prompt_shorter_than_the_window():
    rounding = Rounding(budget=1, protected=0, window=100)
    assert rounding.evicted_blocks(99, block=32) == 0
    assert rounding.evicted_blocks(100, block=32) == 3


def test_a_share_never_goes_below_what_is_protected():
    rounding = Rounding(budget=0.01, protected=40, window=8)
    assert rounding.kept(1000, block=32) == 40


def test_the_line_at_the_start_says_what_the_budget_becomes():
    assert Rounding(budget=1024, protected=0, window=8).told(32) == "1,024 to 1,055 positions"
    shared = Rounding(budget=0.5, protected=0, window=8).told(16)
    assert shared == "50 % of the prompt and at most 15 positions more"
