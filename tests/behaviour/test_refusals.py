"""What a cache refuses: faulty parts, masks it cannot follow, models it cannot serve."""

import attrs
import pytest
import torch
from transformers import Cache, DynamicLayer, T5Config, T5ForConditionalGeneration

import kvpolicy
from kvpolicy.errors import (
    CacheStateError,
    ComponentFailedError,
    InvalidComponentError,
    InvalidValueError,
    UnsupportedModelError,
)
from kvpolicy.exactness.usages import tokens
from kvpolicy.huggingface import opening
from kvpolicy.testing.models import tiny_model

POLICY = kvpolicy.recipe("snapkv", scorer={"name": "snapkv", "window": 8}, budget=24)


@attrs.frozen
class Faulty:
    """Scores like noise, until a layer at which it does something else."""

    fault: object
    layer: int = 1
    window: int = 8

    def score(self, observation, reduce):
        batch, heads = observation.queries.shape[:2]
        scores = torch.ones(batch, heads, observation.length)
        return self.fault(scores) if observation.layer == self.layer else scores


def faulty(fault, layer=1):
    """A policy whose scorer fails in one layer."""
    return kvpolicy.compose(scorer=Faulty(fault, layer), budget=24)


def fail(scores):
    """Raise what no part should."""
    raise ZeroDivisionError("no reason")


def logits(model, cache, ids):
    """The logits of a forward."""
    return model(input_ids=ids, past_key_values=cache).logits


@pytest.mark.parametrize("layer", [0, 1])
def test_an_exception_in_a_part_is_named_and_leaves_the_model_working(layer):
    model, ids = tiny_model("llama"), tokens(0)
    expected = logits(model, None, ids)
    policy = faulty(fail, layer)

    cache = policy.cache(model)
    message = r"Faulty.*ZeroDivisionError: no reason"
    with pytest.raises(ComponentFailedError, match=message) as info, cache:
        logits(model, cache, ids)

    assert isinstance(info.value.__cause__, ZeroDivisionError)
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(logits(model, None, ids), expected)
    with cache, pytest.raises(CacheStateError, match=r"no reason.*reset"):
        logits(model, cache, tokens(1, 1))
    with cache:
        cache.reset()
        assert cache.get_seq_length() == 0
        assert cache.nbytes == 0


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda scores: scores[..., 1:], r"shape \(1, 4, 59\).*must return shape \(1, 4, 60\)"),
        (lambda scores: scores.double(), "float64.*must return dtype torch.float32"),
        (lambda scores: scores * torch.nan, "NaN"),
        (lambda scores: scores.tolist(), "a list"),
    ],
    ids=["shape", "dtype", "nan", "type"],
)
def test_a_scorer_that_breaks_its_promise_is_named_before_anything_is_evicted(fault, message):
    model = tiny_model("llama")
    cache = faulty(fault, layer=0).cache(model)

    with pytest.raises(InvalidComponentError, match=r"Faulty.*" + message):
        logits(model, cache, tokens(0))

    assert cache.policy_layers[0].held == 60


def test_a_compactor_that_breaks_its_promise_is_named():
    model = tiny_model("llama")

    def kept(change):
        @attrs.frozen
        class Careless:
            def compact(self, keys, values, selection, observation):
                return change(*POLICY.compactor.compact(keys, values, selection, observation))

        return attrs.evolve(POLICY, compactor=Careless()).cache(model)

    for change, message in (
        (lambda keys, values: (keys, values[:, :, 1:]), r"float32 \(1, 2, 23, 8\)"),
        (lambda keys, values: (keys.half(), values), "float16"),
        (lambda keys, values: None, "a NoneType"),
    ):
        with pytest.raises(InvalidComponentError, match=f"Careless returned .*{message}"):
            logits(model, kept(change), tokens(0))


def test_a_selector_that_drops_protected_tokens_is_named():
    @attrs.frozen
    class Forgetful:
        def select(self, scores, budgets):
            return POLICY.selector.select(-scores.clamp(max=9.0), budgets)

    model = tiny_model("llama")
    with pytest.raises(InvalidComponentError, match=r"Forgetful .*leaves out protected positions"):
        logits(model, attrs.evolve(POLICY, selector=Forgetful()).cache(model), tokens(0))


def test_a_forward_that_stopped_on_its_way_is_noticed():
    model = tiny_model("llama")
    cache = POLICY.cache(model)
    logits(model, cache, tokens(0))
    hook = model.model.layers[0].mlp.register_forward_hook(lambda *_: fail(None))
    with pytest.raises(ZeroDivisionError):
        logits(model, cache, tokens(1, 1))
    hook.remove()

    with pytest.raises(CacheStateError, match="60 to 61 tokens"):
        logits(model, cache, tokens(1, 1))


def test_a_retry_after_an_interrupted_forward_is_refused_on_hybrid_models():
    model = tiny_model("gemma2", attn_implementation="eager")
    cache = POLICY.cache(model)
    logits(model, cache, tokens(0))
    hook = model.model.layers[0].mlp.register_forward_hook(lambda *_: fail(None))
    with pytest.raises(ZeroDivisionError):
        logits(model, cache, tokens(1, 5))
    hook.remove()

    with pytest.raises(CacheStateError, match="60 to 65 tokens"):
        logits(model, cache, tokens(1, 5))


@pytest.mark.parametrize("pads", [slice(50, None), slice(20, 25)], ids=["right", "inside"])
def test_padding_that_is_not_on_the_left_is_refused(pads):
    model = tiny_model("llama")
    mask = torch.ones(2, 60, dtype=torch.long)
    mask[1, pads] = 0

    with pytest.raises(InvalidValueError, match=r"row 1.*padding_side='left'"):
        model(
            input_ids=tokens(0, batch=2),
            attention_mask=mask,
            past_key_values=POLICY.cache(model),
        )


def test_a_mask_may_not_hide_tokens_that_were_read():
    model = tiny_model("llama")
    cache = POLICY.cache(model)
    logits(model, cache, tokens(0, batch=2))
    mask = torch.ones(2, 65, dtype=torch.long)
    mask[1, 55:58] = 0

    with pytest.raises(InvalidValueError, match="earlier tokens"):
        model(input_ids=tokens(1, 5, 2), attention_mask=mask, past_key_values=cache)


def test_a_padded_batch_may_not_go_on_without_its_mask():
    model = tiny_model("llama")
    cache = POLICY.cache(model)
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[1, :15] = 0
    model(input_ids=tokens(0, 20, 2), attention_mask=mask, past_key_values=cache)

    with pytest.raises(InvalidValueError, match="needs its attention_mask"):
        logits(model, cache, tokens(1, 1, 2))


def test_models_that_cannot_be_served_are_refused_and_left_alone():
    t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    )
    sliding = tiny_model("mistral", sliding_window=8)
    for model, reason in ((t5, "encoder-decoder"), (sliding, "nothing to evict")):
        found = model.config._attn_implementation
        with pytest.raises(UnsupportedModelError, match=reason):
            POLICY.cache(model)
        assert model.config._attn_implementation == found
    with pytest.raises(UnsupportedModelError, match="not a Linear"):
        POLICY.cache(torch.nn.Linear(1, 1))


def test_a_mask_may_not_hide_tokens_that_are_far_back_either():
    model = tiny_model("llama")
    cache = POLICY.cache(model)
    logits(model, cache, tokens(0))
    mask = torch.ones(1, 65, dtype=torch.long)
    mask[:, :30] = 0

    with pytest.raises(InvalidValueError, match="earlier tokens"):
        model(input_ids=tokens(1, 5), attention_mask=mask, past_key_values=cache)


def test_a_mask_must_cover_all_tokens():
    model = tiny_model("llama")
    cache = POLICY.cache(model)
    logits(model, cache, tokens(0))

    with pytest.raises(InvalidValueError, match="5 columns, but 60 tokens"):
        model(
            input_ids=tokens(1, 5),
            attention_mask=torch.ones(1, 5, dtype=torch.long),
            past_key_values=cache,
        )


def test_a_batch_padded_before_the_budget_needs_its_mask_as_well():
    model = tiny_model("llama")
    cache = POLICY.cache(model)
    mask = torch.ones(2, 60, dtype=torch.long)
    mask[1, :20] = 0
    model(input_ids=tokens(0, batch=2), attention_mask=mask, past_key_values=cache)

    with pytest.raises(InvalidValueError, match="needs its attention_mask"):
        logits(model, cache, tokens(1, 5, 2))


def test_drafts_with_caches_that_take_nothing_back_are_refused_before_any_work(monkeypatch):
    monkeypatch.delattr(Cache, "activate_past_recording", raising=False)
    model = tiny_model("llama")
    cache = POLICY.cache(model)
    with pytest.raises(UnsupportedModelError, match="Use a newer transformers, or generate"):
        model.generate(tokens(0), past_key_values=cache, prompt_lookup_num_tokens=3)
    assert cache.seen == 0
    model.generate(tokens(0), past_key_values=cache, max_new_tokens=2)


def test_a_linear_state_that_an_old_transformers_does_not_describe_is_refused(monkeypatch):
    monkeypatch.setattr(opening, "LinearAttentionLayer", DynamicLayer)
    with pytest.raises(UnsupportedModelError, match="do not say how many states"):
        POLICY.cache(tiny_model("llama"))
