"""Questions of different length on one context: padding between the two is masked exactly."""

import attrs
import pytest
import torch

from kvpolicy.errors import CacheStateError, InvalidValueError
from kvpolicy.exactness.conversation import Conversation
from kvpolicy.exactness.limits import LIMIT
from kvpolicy.exactness.usages import small_policy
from kvpolicy.exactness.usages.inputs import generate, tokens
from kvpolicy.testing.models import tiny_model

RECIPES = [
    "snapkv", "restkv", "streamingllm", "h2o", "tova", "adakv", "layerdefensivekv", "pyramidkv",
]  # fmt: skip
LENGTHS = (9, 4, 1)


def questions(seed, lengths=LENGTHS):
    """Return left-padded questions and their mask."""
    most = max(lengths)
    mask = (torch.arange(most) >= most - torch.tensor(lengths)[:, None]).long()
    return tokens(seed, most, len(lengths)) * mask, mask


def asked(model, policy, lengths=LENGTHS, context=60):
    """Return a conversation that has read a context, and questions of different lengths."""
    talk = Conversation.begun(model, policy)
    talk.read(tokens(1, context))
    talk.repeat(len(lengths))
    talk.read(*questions(2, lengths))
    return talk


@pytest.mark.sampled(2, "recipe", "attention")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_logits_are_those_of_the_masked_full_cache(recipe, attention):
    model = tiny_model("llama", num_hidden_layers=4, attn_implementation=attention)
    talk = asked(model, small_policy(recipe))
    for turn in range(3):
        talk.read(tokens(3 + turn, 1, 3))
    talk.read(*questions(8, (3, 30, 12)))
    talk.read(tokens(9, 1, 3))
    assert talk.has_evicted
    assert talk.difference() <= LIMIT


@attrs.frozen
class MoreForTheFirst:
    """Gives the first layer more positions than the others, and all heads of a layer alike."""

    def allocate(self, scores, observation, budget):
        return torch.full(scores.shape[:2], budget - 4 * (observation.layer or -1))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_even_layers_may_hold_different_numbers(attention):
    policy = small_policy("snapkv", allocator=MoreForTheFirst())
    talk = Conversation.begun(tiny_model("llama", attn_implementation=attention), policy)
    talk.read(tokens(1, 60, 2))
    assert [layer.held for layer in talk.cache.policy_layers] == [28, 20]
    talk.read(*questions(2, (9, 4)))
    assert talk.difference() <= LIMIT


@pytest.mark.parametrize("recipe", ["snapkv", "restkv", "h2o", "adakv"])
def test_a_row_keeps_and_says_what_it_would_alone(recipe):
    model, policy = tiny_model("llama", num_hidden_layers=4), small_policy(recipe)
    together = asked(model, policy)
    ids, _ = questions(2)
    for row, length in enumerate(LENGTHS):
        alone = Conversation.begun(model, policy)
        alone.read(tokens(1))
        if length == 1:
            continue  # a forward of one token is decoding: it does not evict
        alone.read(ids[row : row + 1, -length:])
        logits = alone.forwards[-1].logits[0, -1]
        torch.testing.assert_close(together.forwards[-1].logits[row, -1], logits, atol=1e-4, rtol=0)
        for several, one in zip(together.cache.positions, alone.cache.positions, strict=True):
            held = one.shape[-1]
            assert torch.equal(several[row, :, :held], one[0])
            assert bool((several[row, :, held:] == -1).all())


@pytest.mark.parametrize(
    "policy",
    [
        small_policy("restkv", every=3),
        small_policy("h2o", budget=0.4),
        small_policy("adakv", slot_positions=True),
        small_policy("snapkv", budget=400),
    ],
    ids=["every", "share", "slots", "nothing evicted"],
)
def test_it_is_exact_under_every_kind_of_policy(policy):
    talk = asked(tiny_model("llama"), policy)
    for turn in range(7):
        talk.read(tokens(3 + turn, 1, 3))
    talk.read(*questions(8, (2, 8, 5)))
    talk.read(tokens(9, 1, 3))
    assert talk.difference() <= LIMIT


@pytest.mark.parametrize("family", ["gemma2", "qwen3", "gemma3_text"])
def test_it_is_exact_beside_sliding_windows(family):
    talk = asked(tiny_model(family, attn_implementation="eager"), small_policy("restkv"))
    talk.read(tokens(3, 1, 3))
    assert talk.difference() <= LIMIT


@pytest.mark.parametrize("recipe", ["restkv", "adakv", "h2o"])
def test_rows_may_be_reordered_copied_saved_and_chosen_afterwards(recipe):
    talk = asked(tiny_model("llama"), small_policy(recipe))
    for _ in range(2):
        talk = talk.twin().reloaded()
        talk.reorder(torch.tensor([2, 0, 1]))
        talk.read(tokens(4, 1, 3))
    talk.select(torch.tensor([2, 1]))
    talk.read(*questions(5, (2, 7)))
    talk.read(tokens(6, 1, 2))
    assert talk.difference() <= LIMIT


def test_tokens_behind_the_padding_can_be_taken_back_and_padding_cannot():
    talk = asked(tiny_model("llama"), small_policy("streamingllm"))
    talk.read(tokens(3, 1, 3))
    assert talk.crop(2)
    talk.read(tokens(4, 1, 3))
    assert talk.difference() <= LIMIT
    with pytest.raises(CacheStateError, match="padding before a question"):
        talk.cache.crop(-6)


@pytest.mark.parametrize(
    "storage", [{"name": "quantized", "bits": 8}, "offloaded"], ids=["quantized", "offloaded"]
)
@pytest.mark.parametrize("recipe", ["snapkv", "adakv", "h2o"])
def test_a_storage_holds_the_rows_where_they_are_then(recipe, storage):
    model = tiny_model("llama")

    def logits(storage):
        cache = small_policy(recipe).cache(model, storage=storage)
        model(tokens(1), past_key_values=cache)
        cache.batch_repeat_interleave(3)
        ids, mask = questions(2)
        mask = torch.cat([mask.new_ones(3, 60), mask], 1)
        positions = (mask.cumsum(1) - 1)[:, -9:]
        model(ids, attention_mask=mask, position_ids=positions, past_key_values=cache)
        mask = torch.cat([mask, mask.new_ones(3, 1)], 1)
        return model(
            tokens(3, 1, 3), attention_mask=mask, position_ids=mask.sum(1, keepdim=True) - 1,
            past_key_values=cache,
        ).logits  # fmt: skip

    limit = 1e-5 if storage == "offloaded" else 1.0
    torch.testing.assert_close(logits(storage), logits(None), atol=limit, rtol=0)


@torch.enable_grad()
def test_gradients_reach_the_context():
    model = tiny_model("llama")
    cache = small_policy("snapkv", budget=400).cache(model)
    embedded = model.get_input_embeddings()(tokens(1, batch=3)).detach().requires_grad_()
    model(inputs_embeds=embedded, past_key_values=cache)
    ids, mask = questions(2)
    mask = torch.cat([mask.new_ones(3, 60), mask], 1)
    positions = (mask.cumsum(1) - 1)[:, -9:]
    model(
        ids, attention_mask=mask, position_ids=positions, past_key_values=cache
    ).logits[:, -1].sum().backward()  # fmt: skip
    assert bool(embedded.grad.abs().sum(-1).gt(0).all())


def test_generate_answers_each_question_as_alone():
    model, policy = tiny_model("llama"), small_policy("restkv")
    context = policy.cache(model)
    model(tokens(1), past_key_values=context)
    ids, mask = questions(2, (9, 4, 2))
    several = context.clone()
    several.batch_repeat_interleave(3)
    whole = torch.cat([tokens(1).expand(3, -1), ids], 1)
    mask = torch.cat([mask.new_ones(3, 60), mask], 1)
    found = generate(model, several, whole, attention_mask=mask)
    for row, length in enumerate((9, 4, 2)):
        alone = torch.cat([tokens(1), ids[row : row + 1, -length:]], 1)
        expected = generate(model, context.clone(), alone)
        assert torch.equal(found[row, 69:], expected[0, 60 + length :])


def test_what_cannot_be_followed_is_refused_and_the_conversation_goes_on():
    model = tiny_model("llama")
    talk = asked(model, small_policy("restkv"))
    talk.read(tokens(3, 1, 3))
    seen = talk.cache.get_seq_length()
    ids, mask = questions(4)
    read = talk.mask
    for changed, message in (
        (torch.cat([read, mask.flip(1)], 1), "padding behind a real token"),
        (
            torch.cat([read, mask * torch.tensor([[1], [0], [1]])], 1),
            "row 1 .*no token in this turn",
        ),
        (torch.cat([torch.ones_like(read), mask], 1), "earlier tokens"),
    ):
        with pytest.raises(InvalidValueError, match=message):
            model(ids, attention_mask=changed, past_key_values=talk.cache)
        assert talk.cache.get_seq_length() == seen
    talk.read(ids, mask)
    assert talk.difference() <= LIMIT
