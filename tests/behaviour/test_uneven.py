"""Heads that hold different numbers of positions: stored as they are, and attended to exactly."""

from typing import ClassVar

import attrs
import pytest
import torch

from kvpolicy.errors import CacheStateError, InvalidComponentError, UnsupportedModelError
from kvpolicy.exactness.forwards import recorded
from kvpolicy.exactness.replay import max_logit_difference
from kvpolicy.exactness.usages import OF_PLAIN_DATA, USAGES, small_policy, tokens
from kvpolicy.stages.compaction import GatherCompactor
from kvpolicy.testing.models import FAMILIES, tiny_model

LIMIT = 1e-4


@attrs.frozen
class Uneven:
    """Gives later heads of later layers more; on average the budget."""

    uneven: ClassVar[bool] = True

    def allocate(self, scores, observation, budget):
        heads = scores.shape[1]
        places = torch.linspace(-1, 1, heads) if heads > 1 else torch.zeros(1)
        counts = budget + (places * (budget // 2)).round().long()
        return counts.clamp(8, scores.shape[-1]).expand(scores.shape[:2])


@attrs.frozen
class AcrossLayers(Uneven):
    """Gives later layers more, once it knows how many there are."""

    def allocate_layers(self, scores, observations, budget):
        last = len(scores) - 1
        return [
            self.allocate(each, observation, budget + 2 * (2 * layer - last))
            for layer, (each, observation) in enumerate(zip(scores, observations, strict=True))
        ]


@attrs.frozen
class InTurn(Uneven):
    """Gives a layer half, and the next one what that has left."""

    def allocate_next(self, scores, observation, budget, spare):
        heads, length = scores.shape[1:]
        own = budget if observation.layer % 2 else budget // 2
        counts = (own + spare // heads).clamp(8, length)[:, None].repeat(1, heads)
        taken = (counts[:, :1] - 8).minimum(length - counts[:, -1:])
        return torch.cat([counts[:, :1] - taken, counts[:, 1:-1], counts[:, -1:] + taken], 1)


OF_ANY_POLICY = sorted(set(USAGES) - OF_PLAIN_DATA)


def policy(allocator=None, **settings):
    return small_policy("restkv", allocator=allocator or Uneven(), **settings)


@pytest.mark.sampled(8, "family", "usage")
@pytest.mark.parametrize("usage", OF_ANY_POLICY)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3_text"])
def test_every_usage_is_exact_with_uneven_heads(family, usage):
    model = tiny_model(family, attn_implementation="eager" if family == "gemma2" else "sdpa")
    if usage == "after crop" and family.startswith("gemma"):
        with pytest.raises(CacheStateError, match="holds only its sliding window"):
            USAGES[usage](model, policy())
        return
    assert USAGES[usage](model, policy()) <= LIMIT


@pytest.mark.sampled(8, "settings", "usage")
@pytest.mark.parametrize("usage", OF_ANY_POLICY)
@pytest.mark.parametrize(
    "settings",
    [
        {"every": 3},
        {"budget": 0.4},
        {"allocator": AcrossLayers()},
        {"allocator": AcrossLayers(), "every": 2, "budget": 0.4},
        {"allocator": InTurn()},
        {"allocator": InTurn(), "every": 2, "budget": 0.4},
    ],
    ids=[
        "every=3",
        "share",
        "whole model",
        "whole model, every=2, share",
        "layer by layer",
        "layer by layer, every=2, share",
    ],
)
def test_every_usage_is_exact_under_uneven_policies(settings, usage):
    model = tiny_model("llama", attn_implementation="eager")
    assert USAGES[usage](model, policy(**settings)) <= LIMIT


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "gemma2"])
def test_second_turns_are_exact_on_every_family(family):
    model = tiny_model(family)
    assert USAGES["second turn by forward"](model, policy()) <= LIMIT


def test_a_layer_holds_the_bytes_of_what_was_selected():
    model = tiny_model("llama")
    cache = policy().cache(model)
    model(input_ids=tokens(0, batch=2), past_key_values=cache)

    for layer, positions in zip(cache.policy_layers, cache.positions, strict=True):
        lengths = (positions >= 0).sum(-1)
        assert lengths.tolist() == [[12, 36], [12, 36]]
        # A key and a value of 8 floats each, and a position of 4 bytes, for every row.
        assert layer.nbytes == int(lengths.sum()) * (2 * 8 * 4 + 4)
        assert layer.mean_held == 24


def test_decoded_tokens_cost_a_bounded_slack():
    model = tiny_model("llama")
    cache = policy().cache(model)
    model(input_ids=tokens(0), past_key_values=cache)
    before = cache.nbytes
    for step in range(20):
        model(input_ids=tokens(step, 1), past_key_values=cache)

    new = 2 * 2 * 20 * (2 * 8 * 4)
    assert new <= cache.nbytes - before <= 2 * new


def test_positions_and_keys_are_those_that_were_selected():
    model = tiny_model("llama")
    full, cache = small_policy("restkv", budget=1.0).cache(model), policy().cache(model)
    for each in (full, cache):
        model(input_ids=tokens(0), past_key_values=each)

    for layer, whole, positions in zip(
        cache.policy_layers, full.policy_layers, cache.positions, strict=True
    ):
        for head in range(2):
            held = positions[0, head][positions[0, head] >= 0]
            assert (held.diff() > 0).all()
            assert torch.equal(layer.keys[0, head, -len(held) :], whole.keys[0, head, held])
            assert (layer.keys[0, head, : -len(held)] == 0).all()


@pytest.mark.parametrize("count", [3, 5, 9, 30])
def test_a_crop_forgets_the_last_tokens_of_every_head(count):
    model = tiny_model("llama")
    cache = policy().cache(model)
    model(input_ids=tokens(0), past_key_values=cache)
    for step in range(5):
        model(input_ids=tokens(step, 1), past_key_values=cache)
    before = [positions.clone() for positions in cache.positions]
    cache.crop(-count)

    assert cache.get_seq_length() == 65 - count
    for held, was in zip(cache.positions, before, strict=True):
        for head in range(2):
            kept = was[0, head][(was[0, head] >= 0) & (was[0, head] < 65 - count)]
            assert torch.equal(held[0, head][held[0, head] >= 0], kept)
    with recorded(model, cache) as calls:
        model(input_ids=tokens(9, 1), past_key_values=cache)
    assert calls[0].seen == 65 - count


def test_a_cropped_conversation_goes_on_exactly():
    model = tiny_model("llama")
    cache = policy().cache(model)
    with recorded(model, cache) as calls:
        model(input_ids=tokens(0), past_key_values=cache)
    cache.crop(-4)
    # The yardstick reads the prompt without the tokens that were cropped.
    first = attrs.evolve(
        calls[0],
        arguments=calls[0].arguments | {"input_ids": tokens(0)[:, :56]},
        logits=calls[0].logits[:, :56],
    )
    with recorded(model, cache) as more:
        for seed, length in enumerate((1, 7, 1)):
            model(input_ids=tokens(seed, length), past_key_values=cache)

    assert max_logit_difference(model, [first, *more], cache) <= LIMIT


def test_a_crop_of_more_than_a_row_has_is_refused_before_anything_is_lost():
    model = tiny_model("llama")
    cache = policy().cache(model)
    mask = torch.ones(2, 60).long()
    mask[1, :50] = 0
    model(input_ids=tokens(0, batch=2), attention_mask=mask, past_key_values=cache)
    before = [positions.clone() for positions in cache.positions]

    with pytest.raises(CacheStateError, match="only 10"):
        cache.crop(-20)
    assert all(map(torch.equal, cache.positions, before))


def test_sequences_are_reordered_repeated_and_chosen():
    model = tiny_model("llama")
    cache = policy().cache(model)
    ids = tokens(0, batch=3)
    model(input_ids=ids, past_key_values=cache)
    cache.reorder_cache(torch.tensor([2, 0, 1]))
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0, 3]))
    together = model(input_ids=tokens(1, 1, 2), past_key_values=cache).logits

    for row, original in enumerate((2, 0)):
        alone = policy().cache(model)
        model(input_ids=ids[original : original + 1], past_key_values=alone)
        expected = model(input_ids=tokens(1, 1, 2)[row : row + 1], past_key_values=alone).logits
        torch.testing.assert_close(together[row : row + 1], expected, rtol=0, atol=LIMIT)


def test_a_layer_becomes_even_again_when_its_heads_do():
    model = tiny_model("llama")
    cache = policy().cache(model)
    model(input_ids=tokens(0), past_key_values=cache)
    assert all(layer.is_uneven for layer in cache.policy_layers)
    object.__setattr__(cache.session, "policy", small_policy("restkv"))
    model(input_ids=tokens(1, 30), past_key_values=cache)

    assert not any(layer.is_uneven for layer in cache.policy_layers)
    assert [layer.held for layer in cache.policy_layers] == [24, 24]


def test_the_whole_model_is_evicted_when_its_last_layer_has_been_read():
    model = tiny_model("llama", num_hidden_layers=4)
    cache = policy(AcrossLayers()).cache(model)
    model(input_ids=tokens(0), past_key_values=cache)

    held = torch.tensor([[(head >= 0).sum() for head in layer[0]] for layer in cache.positions])
    assert held.double().mean() == 24
    assert held.sum(1).tolist() == [2 * 18, 2 * 22, 2 * 26, 2 * 30]


def test_an_allocator_that_kept_quiet_is_named_when_a_part_needs_even_heads():
    @attrs.frozen
    class Quiet(Uneven):
        uneven: ClassVar[bool] = False

    @attrs.frozen
    class Joining(GatherCompactor):
        across_heads: ClassVar[bool] = True

    model = tiny_model("llama")
    cache = policy(Quiet(), compactor=Joining()).cache(model)
    with pytest.raises(InvalidComponentError, match=r"allocator Quiet .* 12 to 36 .* Joining"):
        model(input_ids=tokens(0), past_key_values=cache)


def test_dropout_is_refused_where_attention_is_our_own():
    model = tiny_model("llama", attention_dropout=0.5)
    cache = policy().cache(model)
    model(input_ids=tokens(0), past_key_values=cache)
    model.train()

    with pytest.raises(UnsupportedModelError, match="dropout"):
        model(input_ids=tokens(1, 1), past_key_values=cache)


def test_heads_that_are_even_are_shown_together_whatever_the_batch_holds():
    @attrs.frozen
    class UnevenOnLongRows(Uneven):
        def allocate(self, scores, observation, budget):
            if observation.seen < 50:
                return torch.full(scores.shape[:2], min(budget, scores.shape[-1]))
            return super().allocate(scores, observation, budget)

    shown = []

    @attrs.frozen
    class Spy:
        window = 8

        def score(self, observation, reduce):
            shown.append((observation.seen, observation.keys.shape[1]))
            return observation.folded_attention(reduce)

    model = tiny_model("llama", num_hidden_layers=1)
    cache = policy(UnevenOnLongRows(), scorer=Spy()).cache(model)
    mask = torch.ones(2, 60).long()
    mask[1, :25] = 0
    model(input_ids=tokens(0, batch=2), attention_mask=mask, past_key_values=cache)
    shown.clear()
    mask = torch.cat([mask, torch.ones(2, 5).long()], 1)
    model(input_ids=tokens(1, 5, 2), attention_mask=mask, past_key_values=cache)

    assert shown == [(65, 1), (65, 1), (40, 2)]
