"""A hostile part at work in a model: named, its cache says so, and all else goes on as before."""

from __future__ import annotations

import sys

import attrs
import pytest
import torch

import kvpolicy
from kvpolicy import Selection
from kvpolicy.errors import CacheStateError, KvpolicyError
from kvpolicy.exactness.usages import small_policy, tokens
from kvpolicy.stages.allocation import UniformAllocator
from kvpolicy.stages.compaction import GatherCompactor
from kvpolicy.stages.selection import TopKSelector
from kvpolicy.testing.models import tiny_model

LAYER = 1
"""The layer at which parts turn hostile: one has been evicted by then."""


@attrs.frozen
class Hostile:
    """Any part, which does something to its result, or to what it is given, at one layer."""

    spoil: object
    calls: list = attrs.field(factory=list)
    window = 8

    def _done(self, result, *given):
        self.calls.append(None)
        return self.spoil(result, *given) if len(self.calls) > LAYER else result

    def score(self, observation, reduce):
        return self._done(observation.folded_attention(reduce), observation)

    def temporal(self, values):
        return values.mean(-2)

    def spatial(self, scores, observation):
        return self._done(scores, scores, observation)

    def allocate(self, scores, observation, budget):
        return self._done(UniformAllocator().allocate(scores, observation, budget), scores)

    def select(self, scores, budgets):
        return self._done(TopKSelector().select(scores, budgets), scores, budgets)

    def compact(self, keys, values, selection, observation):
        return self._done(
            GatherCompactor().compact(keys, values, selection, observation), keys, values
        )


def raising(result, *given):
    raise ZeroDivisionError("on purpose")


def exiting(result, *given):
    sys.exit("on purpose")


def nothing(result, *given):
    return None


def writing(result, *given):
    given[0].zero_() if isinstance(given[0], torch.Tensor) else given[0].keys.zero_()
    return result


def meta(result, *given):
    if isinstance(result, Selection):
        return attrs.evolve(result, indices=result.indices.to("meta"))
    if isinstance(result, tuple):
        return tuple(each.to("meta") for each in result)
    return result.to("meta")


SPOILS = (raising, exiting, nothing, writing, meta)
KINDS = ("scorer", "smoother", "allocator", "selector", "compactor")


def read(model, cache, length=60, seed=0):
    return model(input_ids=tokens(seed, length), past_key_values=cache).logits


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_part_harms_only_the_cache_it_works_for(kind, spoil):
    model, policy = tiny_model("llama"), small_policy("snapkv")
    plain, expected = read(model, None), read(model, policy.cache(model))
    spoiled = attrs.evolve(policy, **{kind: Hostile(spoil)}).cache(model)
    other = policy.cache(model)
    first = read(model, other)

    with pytest.raises(KvpolicyError, match=f"{kind} Hostile ") as caught:
        read(model, spoiled)

    reason = str(caught.value)
    for _ in range(2):
        with pytest.raises(CacheStateError, match=r"cache.reset\(\)") as refused:
            read(model, spoiled, 1)
        assert reason in str(refused.value)
    with pytest.raises(CacheStateError):
        spoiled.save("never.safetensors")
    assert torch.equal(first, expected)
    alone = policy.cache(model)
    read(model, alone)
    assert torch.equal(read(model, other, 1, seed=1), read(model, alone, 1, seed=1))
    assert torch.equal(read(model, None), plain)
    spoiled.reset()
    assert (spoiled.get_seq_length(), spoiled.nbytes) == (0, 0)


@attrs.frozen
class Accumulating:
    """Keeps running state, made by `state` of what is observed."""

    state: object
    window = 1

    def accumulate(self, observation):
        return self.state(observation)

    def score(self, observation, reduce):
        return observation.folded_attention(reduce)


def zeros(observation, *rest, dtype=torch.float32):
    shape = (*observation.queries.shape[:2], observation.length, *rest)
    return torch.zeros(shape, dtype=dtype)


def added_in_place(observation):
    if observation.state is None:
        return zeros(observation)
    return observation.state.add_(1)


WRONG = {
    "shape": (lambda layer: zeros(layer)[..., 1:], "a state of shape (1, 4, 59)"),
    "heads": (lambda layer: zeros(layer)[:, :2], "a state of shape (1, 2, 60)"),
    "dtype": (lambda layer: zeros(layer, dtype=torch.half), "a state of dtype torch.float16"),
    "nan": (lambda layer: zeros(layer) / 0, "a state that is NaN"),
    "type": (lambda layer: None, "a state of None"),
    "device": (lambda layer: zeros(layer).to("meta"), "a tensor on meta"),
    "entries": (lambda layer: zeros(layer, layer.seen), "(1, 4, 61, 60), as it did before"),
    "writing": (added_in_place, "wrote into state"),
}


@pytest.mark.parametrize(("state", "message"), WRONG.values(), ids=WRONG)
def test_running_state_that_is_wrong_is_named(state, message):
    model = tiny_model("llama")
    policy = kvpolicy.compose(scorer=Accumulating(state), budget=64)
    cache = policy.cache(model)
    with pytest.raises(KvpolicyError, match="scorer Accumulating") as caught:
        [read(model, cache, length) for length in (60, 1)]
    assert message in str(caught.value)
    with pytest.raises(CacheStateError, match="scorer Accumulating"):
        read(model, cache, 1)


def test_running_state_with_other_entries_for_some_rows_is_named():
    model = tiny_model("llama")
    policy = kvpolicy.compose(scorer=Accumulating(lambda at: zeros(at, at.length)), budget=64)
    mask = torch.ones(2, 60, dtype=torch.long)
    mask[1, :20] = 0
    with pytest.raises(KvpolicyError, match=r"entries have the shapes \(40,\), \(60,\)"):
        model(
            input_ids=tokens(0, batch=2), attention_mask=mask, past_key_values=policy.cache(model)
        )


@pytest.mark.parametrize("which", ["part of what it was given", "one tensor for both"])
def test_a_compactor_may_give_back_views(which):
    model, policy = tiny_model("llama"), small_policy("snapkv")

    @attrs.frozen
    class Viewing:
        def compact(self, keys, values, selection, observation):
            count = selection.indices.shape[-1]
            kept = keys[:, :, -count:]
            return (kept, values[:, :, -count:]) if "part" in which else (kept, kept)

    cache = attrs.evolve(policy, compactor=Viewing()).cache(model)
    whole = small_policy("snapkv", budget=60).cache(model)
    for each in (cache, whole):
        read(model, each)
    before = [layer.keys[:, :, -24:].clone() for layer in whole.policy_layers]
    for step in range(40):
        read(model, cache, 1, seed=step)
    assert cache.nbytes < whole.nbytes * 1.3
    for layer, kept in zip(cache.policy_layers, before, strict=True):
        assert torch.equal(layer.keys[:, :, :24], kept)
        if "part" not in which:
            assert torch.equal(layer.values[:, :, :24], kept)


def spoiling(queries, keys, **settings):
    keys[0, 0, 0, 0] = 5
    return torch.ones(1, 1, 4, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (spoiling, "wrote into the queries or keys"),
        (lambda *given, **more: sys.exit(3), "raised SystemExit: 3"),
        (lambda *given, **more: torch.ones(1, 1, 4, 4, device="meta").bool(), "on meta, not"),
        (lambda *given, **more: {}, "chose {}, not"),
    ],
)
def test_a_hostile_prefill_pattern_is_named(choose, message):
    class Pattern:
        block = 16
        dense_up_to = 0

    Pattern.choose = lambda self, *given, **more: choose(*given, **more)
    model, policy = tiny_model("llama"), small_policy("snapkv")
    plain = read(model, None)
    cache = policy.cache(model, prefill=Pattern())
    with pytest.raises(KvpolicyError, match=r"prefill pattern .*Pattern object") as caught:
        read(model, cache)
    assert message in str(caught.value)
    with pytest.raises(CacheStateError, match=r"cache.reset\(\)"):
        read(model, cache, 1)
    assert torch.equal(read(model, None), plain)
