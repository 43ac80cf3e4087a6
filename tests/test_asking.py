"""A scorer that asks another one takes it by name, and declares what the other one declares."""

import pytest
import torch

import kvpolicy
from kvpolicy.asking import AskingScorer
from kvpolicy.errors import (
    ComponentFailedError,
    InvalidComponentError,
    InvalidValueError,
    UnknownComponentError,
    UnsupportedModelError,
)
from kvpolicy.pipeline.capabilities import ModelFacts
from kvpolicy.stages.smoothing import MeanSmoother, fold_of
from kvpolicy.testing import observation
from kvpolicy_snapkv import AttentionScorer

mean = fold_of(MeanSmoother())
ASKING = ("replay", "dapq")


def test_scores_are_those_of_the_other_scorer():
    layer = observation(positions=9, window=4, ahead=True)
    scores = AskingScorer(scorer={"name": "snapkv", "window": 4}).ask(layer, mean)
    assert torch.equal(scores, layer.folded_attention(mean))


@pytest.mark.parametrize("found", [torch.zeros(1, 4, 8), torch.full((1, 4, 9), torch.nan)])
def test_scores_of_the_other_scorer_are_checked_and_it_is_named(monkeypatch, found):
    monkeypatch.setattr(AttentionScorer, "score", lambda *_: found)
    with pytest.raises(InvalidComponentError, match="scorer 'snapkv' of plugin 'snapkv'"):
        AskingScorer(scorer="snapkv").ask(observation(positions=9), mean)


def test_an_error_of_the_other_scorer_names_it(monkeypatch):
    def fail(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(AttentionScorer, "score", fail)
    with pytest.raises(ComponentFailedError, match=r"scorer 'snapkv'.* raised .*no memory"):
        AskingScorer(scorer="snapkv").ask(observation(positions=9), mean)


@pytest.mark.parametrize("name", ASKING)
def test_equal_policies_have_equal_hashes(name):
    options = {"scorer": {"name": "snapkv", "window": 8}}
    policies = {kvpolicy.recipe(name, scorer=options) for _ in range(2)}
    assert len(policies | {kvpolicy.recipe(name, scorer={"scorer": "jointrestkv"})}) == 2


def test_options_of_the_other_scorer_belong_to_the_policy():
    component = {"name": "snapkv", "window": 8}
    scorer = AskingScorer(scorer=component)
    component["window"] = 4
    assert scorer.scorer == {"name": "snapkv", "window": 8}
    assert scorer.asked.window == 8


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("h2o", InvalidValueError, "'scorer' must be .* scorer 'h2o' .* not say `replayable`"),
        ("replay", InvalidValueError, "scorer 'replay' .* does not say `replayable`"),
        ("dapq", InvalidValueError, "scorer 'dapq' .* does not say `replayable`"),
        ("expectedattention", InvalidValueError, "does not say `replayable`"),
        ("restkw", UnknownComponentError, "restkv"),
        ({"window": 8}, InvalidValueError, "'scorer' must .* a mapping with a 'name'"),
        (7, InvalidValueError, "'scorer' must be the name of a scorer"),
    ],
)
def test_what_cannot_be_asked_is_refused(given, error, message):
    with pytest.raises(error, match=message):
        AskingScorer(scorer=given)


@pytest.mark.parametrize("name", ASKING)
def test_a_scorer_that_is_an_object_is_refused(name):
    """It could not be written down."""
    with pytest.raises(InvalidValueError, match="'scorer' must be the name of a scorer"):
        kvpolicy.recipe(name, scorer={"scorer": AttentionScorer()})


def test_it_needs_what_the_other_scorer_needs():
    assert AskingScorer(scorer="restkv").needs == ("rotary", "output_weight")
    assert AskingScorer(scorer="snapkv").needs == ("rotary",)


def test_it_refuses_models_that_the_other_scorer_refuses():
    facts = ModelFacts(name="Some", layers=2, heads=4, kv_heads=2, has_rotary=True, readers=2)
    AskingScorer(scorer="restkv").check_model(facts)
    with pytest.raises(UnsupportedModelError, match="'jointrestkv'"):
        AskingScorer(scorer="jointrestkv").check_model(facts)


@pytest.mark.parametrize("name", ASKING)
def test_scorers_that_ask_keep_their_own_default(name):
    scorer = kvpolicy.recipe(name).scorer
    assert isinstance(scorer, AskingScorer)
    assert scorer.scorer == {"replay": "restkv", "dapq": "snapkv"}[name]
