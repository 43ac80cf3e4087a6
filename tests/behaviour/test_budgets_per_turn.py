"""With `per_turn` only the newest turn is evicted from; what earlier turns kept stays."""

from itertools import pairwise

import pytest
import torch

import kvpolicy
from kvpolicy.errors import InvalidValueError
from kvpolicy.exactness.conversation import Conversation
from kvpolicy.exactness.limits import LIMIT
from kvpolicy.exactness.usages import small_policy
from kvpolicy.exactness.usages.inputs import padded, tokens
from kvpolicy.testing.models import tiny_model

RECIPES = ["snapkv", "restkv", "adakv", "pyramidkv", "layerdefensivekv", "chunkkv", "tova", "h2o"]
TURNS = (60, 1, 1, 40, 1, 5, 1, 50)


def policy_of(recipe="restkv", **changes):
    return small_policy(recipe, **{"every": None, "per_turn": True} | changes)


def talked(policy, turns=TURNS, **model):
    """Return a conversation of these turns, and the positions held after each of them."""
    talk = Conversation.begun(tiny_model("llama", **{"num_hidden_layers": 3} | model), policy)
    held = []
    for turn, length in enumerate(turns):
        talk.read(tokens(turn, length))
        held.append([each.clone() for each in talk.cache.positions])
    return talk, held


def kept(positions, row=0, head=0):
    """Return the positions of one head."""
    return {place for place in positions[row, head].tolist() if place >= 0}


@pytest.mark.parametrize("recipe", RECIPES)
def test_logits_are_those_of_the_masked_full_cache(recipe):
    talk, _ = talked(policy_of(recipe))
    assert talk.has_evicted
    assert talk.difference() <= LIMIT


def lost(policy):
    """Count what a head held when a prompt ended, and not any more when the next one did."""
    _, held = talked(policy)
    ends = [each for each, length in zip(held, TURNS, strict=True) if length > 1]
    return sum(
        len(kept(old, head=head) - kept(new, head=head))
        for before, after in pairwise(ends)
        for old, new in zip(before, after, strict=True)
        for head in range(old.shape[1])
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_earlier_turns_kept_stays(recipe):
    assert lost(policy_of(recipe)) == 0
    assert lost(policy_of(recipe, per_turn=False)) > 0


@pytest.mark.parametrize("recipe", ["snapkv", "adakv", "layerdefensivekv"])
def test_each_turn_keeps_at_most_its_budget(recipe):
    _, held = talked(policy_of(recipe))
    # The turns are 60, 2 + 40, 1 + 5 (fewer than the budget) and 1 + 50 tokens.
    for after, most in ((held[0], 24), (held[3], 48), (held[5], 54), (held[7], 78)):
        mean = float(torch.stack([(each >= 0).sum() / 2 for each in after]).mean())
        assert 0.95 * most <= mean <= most


def test_a_share_is_a_share_of_the_turn():
    _, held = talked(policy_of(budget=0.5), turns=(60, 40))
    assert [len(kept(each)) for each in held[1]] == [30 + 20] * 3


def test_one_turn_is_as_without_it():
    _, apart = talked(policy_of(), turns=(60, 1, 1))
    _, together = talked(small_policy("restkv"), turns=(60, 1, 1))
    for one, other in zip(apart[-1], together[-1], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("recipe", ["restkv", "adakv"])
def test_rows_of_a_padded_batch_keep_what_they_would_alone(recipe):
    model, policy = tiny_model("llama"), policy_of(recipe)
    ids, mask = padded([60, 45, 30])
    talk = Conversation.begun(model, policy)
    talk.read(ids, mask)
    talk.read(tokens(2, 35, 3))
    talk.read(tokens(3, 1, 3))
    assert talk.difference() <= LIMIT
    for row, length in enumerate((60, 45, 30)):
        alone = Conversation.begun(model, policy)
        alone.read(ids[row : row + 1, -length:])
        alone.read(tokens(2, 35, 3)[row : row + 1])
        for several, one in zip(talk.cache.positions, alone.cache.positions, strict=True):
            for head in range(2):
                found = {place for place in kept(several, row, head) if place < length + 35}
                assert found == kept(one, head=head)


@pytest.mark.parametrize("recipe", ["restkv", "adakv"])
def test_turns_are_kept_apart_in_copies_files_and_after_crop(recipe):
    talk, _ = talked(policy_of(recipe), turns=(60, 1, 40, 1, 1))
    talk = talk.twin().reloaded()
    assert talk.crop(2)
    first = [kept(each) for each in talk.cache.positions]
    talk.read(tokens(7, 40))
    talk.read(tokens(8, 1))
    assert talk.difference() <= LIMIT
    for before, after in zip(first, talk.cache.positions, strict=True):
        assert before <= kept(after)


def test_every_is_refused_beside_it():
    with pytest.raises(InvalidValueError, match=r"per_turn=True .* every=3"):
        kvpolicy.recipe("snapkv", per_turn=True, every=3)


def test_it_goes_through_plain_data():
    policy = policy_of()
    assert policy.to_dict()["per_turn"] is True
    assert kvpolicy.Policy.from_dict(policy.to_dict()) == policy
