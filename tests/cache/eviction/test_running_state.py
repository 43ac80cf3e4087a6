"""Running state follows its positions through every forward, eviction, crop and reordering."""

from typing import ClassVar

import attrs
import pytest
import torch

import kvpolicy
from kvpolicy.errors import InvalidComponentError
from kvpolicy.exactness.usages import OF_PLAIN_DATA, USAGES, tokens
from kvpolicy.testing.models import tiny_model
from kvpolicy_kernels import window_attention


@attrs.frozen
class MarkingScorer:
    """Marks every position with its own number, and finds each mark where it was put."""

    window: ClassVar[int] = 4

    def accumulate(self, observation):
        mark = (observation.positions + 1.0).repeat_interleave(2, 1)
        state = observation.state
        if state is not None:
            new = observation.queries.shape[2]
            old = slice(0, observation.length - new)
            assert torch.equal(state[:, :, old, 0], mark[:, :, old]), "a mark has moved"
            assert (state[:, :, observation.length - new :] == 0).all(), "new state is not empty"
        return torch.stack([mark, -mark], -1)

    def score(self, observation, reduce):
        assert torch.equal(
            observation.state[..., 0], observation.positions.repeat_interleave(2, 1) + 1.0
        )
        return observation.folded_attention(reduce)


@attrs.frozen
class SumScorer:
    """Adds up attention over all queries there ever were."""

    window: ClassVar[int] = 1

    def accumulate(self, observation):
        ones = torch.ones(observation.window)
        new = window_attention(
            observation.queries, observation.keys, ones, scaling=observation.scaling
        ).attention
        return new if observation.state is None else observation.state + new

    def score(self, observation, reduce):
        return observation.state


@attrs.frozen
class Uneven:
    """Gives later heads more."""

    uneven: ClassVar[bool] = True

    def allocate(self, scores, observation, budget):
        heads = torch.arange(scores.shape[1])
        return (budget // 2 + heads * budget).clamp(6, scores.shape[-1]).expand(scores.shape[:2])


def marking(**settings):
    return kvpolicy.compose(
        **{"scorer": MarkingScorer(), "budget": 24, "allocator": "uniform"} | settings
    )


@pytest.mark.sampled(8, "settings", "usage")
@pytest.mark.parametrize("usage", sorted(set(USAGES) - OF_PLAIN_DATA))
@pytest.mark.parametrize(
    "settings",
    [{}, {"every": 1}, {"every": 3, "allocator": Uneven()}, {"allocator": Uneven(), "budget": 0.4}],
    ids=["prompts", "every token", "uneven", "uneven share"],
)
def test_state_stays_with_its_positions_in_every_usage(usage, settings):
    assert USAGES[usage](tiny_model("llama"), marking(**settings)) <= 1e-4


@pytest.mark.parametrize("allocator", ["uniform", Uneven()], ids=["even", "uneven"])
def test_state_is_cropped_and_reordered_with_its_positions(allocator):
    model = tiny_model("llama")
    cache = marking(allocator=allocator).cache(model)

    def read(seed, length, batch):
        model(input_ids=tokens(seed, length, batch), past_key_values=cache)

    read(0, 60, 3)
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    read(1, 1, 3)
    read(2, 1, 3)
    cache.crop(-1)
    read(3, 1, 3)
    cache.batch_repeat_interleave(2)
    read(4, 30, 6)
    cache.batch_select_indices(torch.tensor([5, 1]))
    read(5, 40, 2)

    assert cache.get_seq_length() == 60 + 2 + 30 + 40


def test_a_row_that_is_left_of_a_padded_batch_goes_on_with_its_state():
    model = tiny_model("llama")
    policy = kvpolicy.compose(scorer=SumScorer(), budget=0.5)
    together, alone = policy.cache(model), policy.cache(model)
    ids = tokens(0, batch=2)
    mask = torch.ones_like(ids)
    mask[1, :20] = 0
    model(input_ids=ids, attention_mask=mask, past_key_values=together)
    model(input_ids=ids[1:, 20:], past_key_values=alone)
    together.batch_select_indices(torch.tensor([1]))
    for step, length in enumerate((1, 9, 1)):
        more = tokens(step, length)
        mask = torch.cat([mask, mask.new_ones(2, length)], 1)
        found = model(input_ids=more, attention_mask=mask[1:], past_key_values=together).logits
        torch.testing.assert_close(found, model(input_ids=more, past_key_values=alone).logits)

    for one, other in zip(together.policy_layers, alone.policy_layers, strict=True):
        state, expected = one.memory.contents.state, other.memory.contents.state
        torch.testing.assert_close(state[:, :, -expected.shape[2] :], expected)


def test_sums_are_those_of_the_models_own_attention():
    model = tiny_model("llama", attn_implementation="eager")
    policy = kvpolicy.compose(scorer=SumScorer(), budget=1000)
    cache, ids = policy.cache(model), tokens(0, 50, 2)
    for chunk in ids.split([20, 1, 1, 1, 27], dim=1):
        model(input_ids=chunk, past_key_values=cache)

    kvpolicy.restore(model)
    attentions = model(input_ids=ids, output_attentions=True).attentions

    for layer, attention in zip(cache.policy_layers, attentions, strict=True):
        torch.testing.assert_close(
            layer.memory.contents.state, attention.sum(2), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("every", [1, 4])
def test_the_budget_holds_after_every_eviction_while_decoding(every):
    model = tiny_model("llama")
    policy = kvpolicy.compose(scorer=SumScorer(), budget=20, recent=0.5, every=every)
    cache = policy.cache(model)
    model(input_ids=tokens(0, 40), past_key_values=cache)
    held = []
    for step in range(20):
        model(input_ids=tokens(step, 1), past_key_values=cache)
        held.append(max(layer.held for layer in cache.policy_layers))

    assert held == [20 + (step + 1) % every for step in range(20)]


def test_memory_stays_flat_however_long_a_text_grows():
    model = tiny_model("llama", num_hidden_layers=1, max_position_embeddings=4096)
    policy = kvpolicy.compose(scorer=SumScorer(), budget=20, recent=0.5, every=1)
    cache = policy.cache(model)
    model(input_ids=tokens(0, 40), past_key_values=cache)
    sizes = set()
    for step in range(300):
        model(input_ids=tokens(step, 1), past_key_values=cache)
        sizes.add(cache.nbytes)

    assert len(sizes) == 1


def test_a_state_that_is_not_one_is_refused_with_its_scorer():
    @attrs.frozen
    class Forgetful(SumScorer):
        def accumulate(self, observation):
            return super().accumulate(observation)[..., 1:]

    model = tiny_model("llama")
    cache = kvpolicy.compose(scorer=Forgetful(), budget=20).cache(model)
    with pytest.raises(InvalidComponentError, match="Forgetful returned a state"):
        model(input_ids=tokens(0, 40), past_key_values=cache)
