"""A divider gives each span its share of what a head keeps, and the cache stays exact."""

import attrs
import numpy as np
import pytest
import torch

import kvpolicy
from kvpolicy.errors import ComponentFailedError, InvalidComponentError, InvalidValueError
from kvpolicy.exactness.conversation import Conversation
from kvpolicy.exactness.limits import LIMIT
from kvpolicy.testing import tiny_model

SPANS = {"rules": (0, 20), "image": (30, 60)}
RECENT = 8


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


def ids_of(*shape, seed=0):
    return torch.randint(1, 128, shape, generator=torch.Generator().manual_seed(seed))


def small(recipe="snapkv", **changes):
    settings = {"budget": 32, "scorer": {"window": RECENT}, "recent": RECENT}
    return kvpolicy.recipe(recipe, **(settings | changes))


def counts(cache, seen, row=0, spans=SPANS):
    """How many positions of each span, and of the text outside, each head keeps of the past."""
    found = []
    for layer in cache.positions:
        for head in layer[row].tolist():
            past = [at for at in head if 0 <= at < seen - RECENT]
            inside = [sum(first <= at < end for at in past) for first, end in spans.values()]
            found.append([*inside, len(past) - sum(inside)])
    return found


@pytest.mark.parametrize("recipe", ["snapkv", "adakv", "pyramidkv", "layerdefensivekv"])
def test_each_head_keeps_the_same_share_of_each_span_within_one_position(model, recipe):
    window = {"window": RECENT}
    changes = {"scorer": window, "recent": RECENT, "budget": 32}
    if recipe == "pyramidkv":
        changes["allocator"] = window
    talk = Conversation(
        model, kvpolicy.recipe(recipe, **changes).cache(model, spans=SPANS, divider="fair")
    )
    talk.read(ids_of(1, 88))
    for of_head in counts(talk.cache, 88):
        kept = sum(of_head)
        for count, length in zip(of_head, (20, 30, 30), strict=True):
            assert abs(count - kept * length / 80) < 1
    talk.read(ids_of(1, 40, seed=1))
    talk.read(ids_of(1, 1))
    assert talk.difference() <= LIMIT


def test_without_a_divider_scores_alone_decide(model):
    fair, plain = (
        small().cache(model, spans=SPANS, protect=["rules"], **options)
        for options in ({"divider": "fair"}, {})
    )
    for cache in (fair, plain):
        model(ids_of(1, 88), past_key_values=cache)
    assert {tuple(each) for each in counts(fair, 88)} == {(20, 2, 2)}
    assert len({tuple(each) for each in counts(plain, 88)}) > 1


def test_a_later_turn_divides_by_the_whole_text_and_not_by_what_is_held(model):
    cache = small().cache(model, spans=SPANS, divider="fair")
    model(ids_of(1, 88), past_key_values=cache)
    model(ids_of(1, 40, seed=1), past_key_values=cache)
    # 24 positions for 20, 30 and 70 tokens.
    assert {tuple(each) for each in counts(cache, 128)} == {(4, 6, 14)}


def test_rows_with_spans_of_their_own_divide_as_if_alone(model):
    ids, mask = ids_of(2, 88), torch.ones(2, 88, dtype=torch.long)
    mask[1, :8] = 0
    spans = [SPANS, {"image": (10, 50)}]
    cache = small().cache(model, spans=spans, divider="fair")
    model(ids * mask, attention_mask=mask, past_key_values=cache)
    assert {tuple(each) for each in counts(cache, 88)} == {(6, 9, 9)}
    assert {tuple(each) for each in counts(cache, 80, 1, spans[1])} == {(13, 11)}


def test_per_turn_divides_the_newest_turn(model):
    cache = small(per_turn=True).cache(model, spans=SPANS, divider="fair")
    model(ids_of(1, 88), past_key_values=cache)
    first = counts(cache, 88)
    model(ids_of(1, 60, seed=1), past_key_values=cache)
    assert [each[:2] for each in counts(cache, 148)] == [each[:2] for each in first]


def test_a_file_has_the_divider(model, tmp_path):
    cache = small().cache(model, spans=SPANS, protect=["rules"], divider="fair")
    model(ids_of(1, 88), past_key_values=cache)
    cache.save(tmp_path / "context.safetensors")
    loaded = kvpolicy.load(tmp_path / "context.safetensors", model)
    for each in (cache, loaded):
        model(ids_of(1, 40, seed=1), past_key_values=each)
    assert all(torch.equal(*both) for both in zip(cache.positions, loaded.positions, strict=True))


def test_a_divider_with_an_error_target_and_one_without_spans_are_refused(model):
    with pytest.raises(InvalidValueError, match=r"divider 'fair'.*error target.*number or a share"):
        small(budget=kvpolicy.within(0.1, window=RECENT)).cache(model, spans=SPANS, divider="fair")
    with pytest.raises(InvalidValueError, match=r"divider 'fair'.*there are none"):
        small().cache(model, divider="fair")


class OfNumPy:
    def divide(self, lengths):
        return {name: np.float32(length) for name, length in lengths.items()}


def test_parts_may_be_numbers_of_numpy(model):
    positions = []
    for divider in ("fair", OfNumPy()):
        cache = small().cache(model, spans=SPANS, divider=divider)
        model(ids_of(1, 88), past_key_values=cache)
        positions.append(cache.positions)
    assert all(torch.equal(*both) for both in zip(*positions, strict=True))


@attrs.frozen
class Faulty:
    returns: object

    def divide(self, lengths):
        if callable(self.returns):
            return self.returns(lengths)
        return self.returns


@pytest.mark.parametrize(
    ("returns", "error", "message"),
    [
        (4, InvalidComponentError, "divider Faulty returned parts of a int"),
        (
            {"rules": 1.0},
            InvalidComponentError,
            r"it must return parts of \['', 'rules', 'image'\]",
        ),
        (lambda each: dict.fromkeys(each, -1.0), InvalidComponentError, "finite and at"),
        (
            lambda each: dict.fromkeys(each, float("nan")),
            InvalidComponentError,
            "finite and at",
        ),
        (lambda each: dict.fromkeys(each, "much"), InvalidComponentError, "finite and at"),
        (lambda each: each["none"], ComponentFailedError, "divider Faulty raised KeyError"),
    ],
)
def test_a_faulty_divider_is_named(model, returns, error, message):
    cache = small().cache(model, spans=SPANS, divider=Faulty(returns))
    with pytest.raises(error, match=message):
        model(ids_of(1, 88), past_key_values=cache)
