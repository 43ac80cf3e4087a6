"""Protected spans stay whole in every head of every layer, and the cache stays exact and small."""

import attrs
import pytest
import torch

import kvpolicy
from kvpolicy.errors import CacheFileError, InvalidValueError
from kvpolicy.exactness.conversation import Conversation
from kvpolicy.exactness.forwards import recorded
from kvpolicy.exactness.limits import LIMIT
from kvpolicy.exactness.replay import max_logit_difference
from kvpolicy.testing import tiny_model

SPANS = {"tools": (8, 14), "image": (30, 37)}
WHOLE = {*range(8, 14), *range(30, 37)}
BUDGET = 26
CHANGED = {"cam", "lookm", "think"}
"""Recipes whose compactor changes rows, so that they have no full cache to be compared with."""


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", num_hidden_layers=4)


def ids_of(*shape, seed=0):
    return torch.randint(1, 128, shape, generator=torch.Generator().manual_seed(seed))


def small(recipe="snapkv", **changes):
    window = {"scorer": {"window": 8}, "recent": 8} if recipe in ("snapkv", "adakv") else {}
    return kvpolicy.recipe(recipe, **({"budget": BUDGET} | window | changes))


def missing(cache, whole=WHOLE, row=0):
    """The positions of `whole` that a head of the cache lacks."""
    heads = [head for layer in cache.positions for head in layer[row].tolist()]
    return set().union(*(whole - set(head) for head in heads))


def held(cache):
    """Positions held by a head, on average over heads and layers."""
    counts = torch.cat([(layer >= 0).sum(-1).flatten() for layer in cache.positions])
    return float(counts.double().mean())


RECIPES = [part.name for part in kvpolicy.installed("recipe") if part.name != "headkv"]


@pytest.mark.sampled(4, "recipe")
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_protected_position_is_never_evicted_by_any_recipe(model, recipe):
    cache = kvpolicy.recipe(recipe, budget=56).cache(model, spans=SPANS, protect=list(SPANS))
    ids = ids_of(1, 90)
    with recorded(model, cache) as forwards:
        model(ids, past_key_values=cache)
        assert held(cache) <= 56
        for at in range(2):
            model(ids[:, at : at + 1], past_key_values=cache)
        model(ids[:, :40], past_key_values=cache)
    assert held(cache) <= 56
    assert missing(cache) == set()
    if recipe not in CHANGED:
        assert max_logit_difference(model, forwards, cache) <= LIMIT


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("adakv", {"per_turn": True}),
        ("adakv", {"every": 2}),
        ("snapkv", {"budget": 0.4}),
        ("snapkv", {"budget": kvpolicy.within(0.2, cap=BUDGET, window=8)}),
        ("snapkv", {"slot_positions": True}),
        ("adakv", {"sinks": 5, "recent": 4}),
        ("adakv", {"budget": 21}),
    ],
    ids=str,
)
def test_settings_of_a_policy_leave_protected_spans_whole(model, recipe, changes):
    cache = small(recipe, **changes).cache(model, spans=SPANS, protect=["tools", "image"])
    ids = ids_of(1, 70)
    with recorded(model, cache) as forwards:
        model(ids, past_key_values=cache)
        for at in range(4):
            model(ids[:, at : at + 1], past_key_values=cache)
        model(ids[:, 10:50], past_key_values=cache)
        model(ids[:, :1], past_key_values=cache)
    assert missing(cache) == set()
    assert max_logit_difference(model, forwards, cache) <= LIMIT


def test_an_unprotected_span_is_evicted_like_other_text(model):
    cache = small().cache(model, spans=SPANS, protect=["image"])
    model(ids_of(1, 70), past_key_values=cache)
    assert missing(cache, {*range(30, 37)}) == set()
    assert missing(cache) != set()


def test_a_budget_may_be_no_more_than_what_is_always_kept(model):
    cache = small(budget=13, recent=0).cache(model, spans=SPANS, protect=["tools", "image"])
    model(ids_of(1, 70), past_key_values=cache)
    assert all(set(head) == WHOLE for layer in cache.positions for head in layer[0].tolist())


@attrs.frozen
class Miser:
    """Gives the first head of a layer one position, and the others as many as there are."""

    uneven = True

    def allocate(self, scores, observation, budget):
        counts = torch.full(scores.shape[:2], budget)
        counts[:, 0] = 1
        return counts


@pytest.mark.parametrize("divider", [None, "fair"])
def test_an_allocator_that_gives_a_head_nearly_nothing_takes_no_protected_position(model, divider):
    spans = {"tools": (1, 9), "end": (56, 60)}
    policy = small(allocator=Miser(), sinks=4)
    cache = policy.cache(model, spans=spans, protect=True, divider=divider)
    model(ids_of(1, 60), past_key_values=cache)
    assert missing(cache, {*range(1, 9), *range(56, 60)}) == set()
    assert [(layer >= 0).sum(-1).tolist() for layer in cache.positions] == [[[13, BUDGET]]] * 4


def test_rows_of_a_batch_have_spans_of_their_own_that_follow_them(model):
    spans = [{"image": (5, 12)}, {"image": (20, 31)}, {}]
    talk = Conversation(model, small().cache(model, spans=spans, protect=["image"]))
    talk.read(ids_of(3, 60))
    twin = talk.twin()
    talk.reorder(torch.tensor([1, 0, 1]))
    twin.select(torch.tensor([1, 2]))
    for each in (talk, twin):
        each.read(ids_of(each.rows, 40, seed=1))
        assert each.difference() <= LIMIT
    cache, twin = talk.cache, twin.cache
    assert missing(cache, {*range(20, 31)}, 0) == missing(cache, {*range(5, 12)}, 1) == set()
    assert missing(cache, {*range(20, 31)}, 2) == missing(twin, {*range(20, 31)}, 0) == set()


def test_a_row_of_a_batch_keeps_what_it_keeps_alone(model):
    ids, mask = ids_of(2, 60), torch.ones(2, 60, dtype=torch.long)
    mask[1, :15] = 0
    spans = [{"image": (5, 12)}, {"image": (20, 31)}]
    policy = small("adakv")
    together = policy.cache(model, spans=spans, protect=["image"])
    model(ids * mask, attention_mask=mask, past_key_values=together)
    for row, first in enumerate((0, 15)):
        alone = policy.cache(model, spans=spans[row], protect=["image"])
        model(ids[row : row + 1, first:], past_key_values=alone)
        assert [
            [[at for at in head if at >= 0] for head in layer[row].tolist()]
            for layer in together.positions
        ] == [
            [[at for at in head if at >= 0] for head in layer[0].tolist()]
            for layer in alone.positions
        ]


def test_generate_serves_beams_chunks_samples_and_drafts(model):
    prompt = ids_of(2, 60)
    for options in (
        {"num_beams": 3},
        {"prefill_chunk_size": 20},
        {"do_sample": True, "num_return_sequences": 2},
    ):
        policy = small(budget=30)
        spans = [{"image": (30, 44)}, {"image": (2, 12)}]
        cache = policy.cache(model, spans=spans, protect=["image"])
        model.generate(prompt, max_new_tokens=3, past_key_values=cache, **options)
        half = cache.batch_size // 2
        assert missing(cache, {*range(30, 44)}, 0) == missing(cache, {*range(2, 12)}, half) == set()
    cache = small().cache(model, spans=SPANS, protect=["tools", "image"])
    model.generate(prompt[:1], max_new_tokens=3, past_key_values=cache, prompt_lookup_num_tokens=2)
    assert missing(cache) == set()


def test_a_file_has_the_spans_of_each_row(model, tmp_path):
    spans = [{"image": (5, 12)}, {"image": (20, 31)}]
    cache = small("adakv").cache(model, spans=spans, protect=["image"])
    model(ids_of(2, 60), past_key_values=cache)
    cache.reorder_cache(torch.tensor([1, 0]))
    kvpolicy.save(cache, tmp_path / "context.safetensors")
    loaded = kvpolicy.load(tmp_path / "context.safetensors", model)
    for each in (cache, loaded):
        model(ids_of(2, 40, seed=1), past_key_values=each)
    assert all(torch.equal(*both) for both in zip(cache.positions, loaded.positions, strict=True))
    assert missing(loaded, {*range(20, 31)}, 0) == missing(loaded, {*range(5, 12)}, 1) == set()


def test_a_file_without_a_protected_position_is_refused(model, tmp_path):
    cache = small().cache(model, spans=SPANS, protect=["image"])
    model(ids_of(1, 60), past_key_values=cache)
    cache.session.spans.protect = frozenset(SPANS)
    kvpolicy.save(cache, tmp_path / "context.safetensors")
    with pytest.raises(CacheFileError, match="protected position"):
        kvpolicy.load(tmp_path / "context.safetensors", model)


def test_a_reset_and_a_crop_leave_the_spans_as_they_were_given(model):
    cache = small().cache(model, spans=SPANS, protect=["image"])
    model(ids_of(1, 60), past_key_values=cache)
    cache.crop(-3)
    model(ids_of(1, 30), past_key_values=cache)
    assert missing(cache, {*range(30, 37)}) == set()
    cache.reset()
    model(ids_of(1, 50, seed=1), past_key_values=cache)
    assert missing(cache, {*range(30, 37)}) == set()


def test_a_static_cache_and_a_storage_keep_protected_spans(model):
    for options in ({"static": True, "capacity": 4}, {"storage": "quantized"}):
        cache = small("adakv").cache(model, spans=SPANS, protect=["image", "tools"], **options)
        model.generate(ids_of(1, 60), max_new_tokens=3, past_key_values=cache)
        assert missing(cache) == set()
    with pytest.raises(InvalidValueError, match=r"static=True and every=1.*static=False"):
        small(every=1).cache(model, spans=SPANS, protect=["image"], static=True)


def test_every_generate_of_a_block_protects_the_same_spans(model):
    with small().applied(model, spans={"system": (0, 9)}, protect=["system"]) as applied:
        found = model.generate(
            ids_of(1, 60), max_new_tokens=2, return_dict_in_generate=True
        ).past_key_values
        assert missing(found, {*range(9)}) == set()
    assert applied.reports[0].held == BUDGET + 1


def test_a_file_of_rows_without_spans_says_nothing_of_spans(model, tmp_path):
    cache = small().cache(model, spans=[{}, {"image": (3, 9)}], protect=["image"])
    model(ids_of(2, 60), past_key_values=cache)
    cache.batch_select_indices(torch.tensor([0]))
    cache.save(tmp_path / "context.safetensors")
    assert kvpolicy.load(tmp_path / "context.safetensors", model).session.spans is None
