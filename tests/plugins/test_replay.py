import json

import attrs
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import kvpolicy
from kvpolicy.errors import InvalidValueError, UnsupportedModelError
from kvpolicy.exactness.usages import small_policy
from kvpolicy.observation.fold import Fold
from kvpolicy.observation.rotary import PlainRotary, rotated
from kvpolicy.stages.smoothing import MeanSmoother, fold_of
from kvpolicy.testing import contract, observation
from kvpolicy.testing.models import tiny_model
from kvpolicy.testing.samples import normal
from kvpolicy_replay import ReplayScorer

test_contract = contract(plugin="replay")
mean = fold_of(MeanSmoother())
INNER = ("snapkv", "restkv", "jointrestkv", "windowedrestkv")


@pytest.fixture
def prompt():
    """A prompt's layer, whose queries before rotary embedding are known."""
    rotary, plain = PlainRotary(dim=8, base=100.0), normal(11, 2, 4, 30, 8) * 2
    layer = observation(
        batch=2, positions=30, queries=rotated(plain, torch.arange(30), rotary), rotary=rotary
    )
    return layer, plain


@pytest.mark.parametrize("hops", [0, 1, 3])
def test_scores_of_attention_are_the_sum_that_the_equations_say(hops, prompt):
    layer, plain = prompt
    scorer = ReplayScorer(scorer={"name": "snapkv", "window": 6}, hops=hops, tokens=5, near=3)
    keys = layer.keys.double().repeat_interleave(2, 1)
    expected = []
    for row in range(2):
        window = layer.queries[row, :, -6:].double() @ keys[row].mT * layer.scaling
        later = torch.ones(6, 30, dtype=torch.bool).triu(25)
        u = window.masked_fill(later, -torch.inf).softmax(-1).mean(1)
        total = u
        for _ in range(hops):
            share = u.mean(0).square()
            share[0] = share[-3:] = 0
            best = share.topk(5)
            asked = rotated(plain[row, :, best.indices], torch.tensor(30), layer.rotary).double()
            attention = (asked @ keys[row].mT * layer.scaling).softmax(-1)
            u = torch.einsum("m,hms->hs", best.values / best.values.sum(), attention)
            total = total + u
        expected.append(total)

    scores = scorer.score(layer, mean)

    torch.testing.assert_close(scores.double(), torch.stack(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", INNER)
def test_without_hops_it_is_the_other_scorer(name, prompt):
    layer, _ = prompt
    component = {"name": name, "window": 8}
    alone = kvpolicy.compose(scorer=component, budget=8).scorer
    last = attrs.evolve(layer, queries=layer.queries[:, :, -8:])

    scores = ReplayScorer(scorer=component, hops=0).score(layer, mean)

    torch.testing.assert_close(scores, alone.score(last, mean))


@pytest.mark.parametrize("name", INNER)
@pytest.mark.parametrize("weighted", [True, False], ids=["weights", "no weights"])
def test_every_scorer_counts_all_positions_for_a_query_that_is_ahead(name, weighted):
    """One query that is ahead is the last query of a window of one."""
    component = {"name": name, "window": 1}
    if name in ("restkv", "jointrestkv"):
        component["o_includes_window"] = True
    scorer = kvpolicy.compose(scorer=component, budget=8).scorer
    layer = observation(positions=20, window=3)
    shares = torch.tensor([0.5, 0.0, 0.5]) if weighted else None
    fold = Fold(lambda rows: (rows[..., 0, :] + rows[..., 2, :]) / 2, lambda window: shares)
    fold = fold if weighted else fold.temporal
    same = attrs.evolve(layer, queries=layer.queries[:, :, :1].expand(-1, -1, 3, -1), ahead=True)
    one = attrs.evolve(layer, queries=layer.queries[:, :, :1])

    torch.testing.assert_close(
        scorer.score(same, fold), scorer.score(one, mean), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", INNER)
@pytest.mark.parametrize("weighted", [True, False], ids=["weights", "no weights"])
def test_sequences_are_scored_together_as_each_alone(name, weighted, prompt):
    layer, _ = prompt
    scorer = ReplayScorer(scorer={"name": name, "window": 8}, tokens=5, near=3)
    reduce = mean if weighted else mean.temporal
    alone = [scorer.score(layer.row(row), reduce) for row in range(2)]

    together = scorer.score(layer, reduce)

    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(alone[0], alone[1])


def test_a_scorer_of_somebody_else_is_shown_sequences_one_after_another(prompt, monkeypatch):
    layer, _ = prompt
    scorer = ReplayScorer(scorer={"name": "snapkv", "window": 8}, tokens=5, near=3)
    expected, shown = scorer.score(layer, mean), []
    theirs = attrs.evolve(scorer.asked_title, distribution="theirs")
    monkeypatch.setattr(ReplayScorer, "asked_title", theirs)
    ask = ReplayScorer.ask
    monkeypatch.setattr(
        ReplayScorer, "ask", lambda self, *given: shown.append(given[0]) or ask(self, *given)
    )

    torch.testing.assert_close(scorer.score(layer, mean), expected)

    assert {len(each.queries) for each in shown} == {1}


def test_a_value_that_no_later_query_needs_is_found_by_what_it_leads_to():
    """The last query points to token 5, whose own query points to token 9."""
    rotary = PlainRotary(dim=8, base=1e12)  # All channels but two stand nearly still.
    keys, plain = torch.zeros(1, 1, 16, 8), torch.zeros(1, 1, 16, 8)
    keys[..., 5, 1], keys[..., 9, 2] = 9, 9
    plain[..., 15, 1], plain[..., 5, 2] = 9, 9
    layer = observation(
        heads=1,
        groups=1,
        positions=16,
        queries=rotated(plain, torch.arange(16), rotary),
        keys=keys,
        values=normal(0, 1, 1, 16, 8),
        output_weight=torch.eye(8),
        rotary=rotary,
    )
    component = {"name": "snapkv", "window": 1}
    without = ReplayScorer(scorer=component, hops=0).score(layer, mean)[0, 0]
    once = ReplayScorer(scorer=component, hops=1).score(layer, mean)[0, 0]
    assert without.topk(1).indices.tolist() == [5]
    assert sorted(once.topk(2).indices.tolist()) == [5, 9]
    assert without[9] < 1e-3


def test_a_prompt_too_short_to_replay_is_scored_by_its_last_queries():
    layer = observation(positions=5, window=5)
    short = ReplayScorer(scorer="snapkv", near=4)
    torch.testing.assert_close(short.score(layer, mean), layer.folded_attention(mean))


def test_the_recipe_goes_through_json():
    policy = kvpolicy.recipe("replay", scorer={"scorer": {"name": "snapkv", "window": 8}})
    data = json.loads(json.dumps(policy.to_dict()))
    assert kvpolicy.Policy.from_dict(data) == policy
    assert data["scorer"]["scorer"] == {"name": "snapkv", "window": 8}


def test_it_does_not_judge_while_decoding():
    with pytest.raises(InvalidValueError, match=r"every=8 .*'replay'.* whole prompt"):
        kvpolicy.recipe("replay", every=8)


def test_a_model_without_known_rotary_embedding_is_refused():
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("gpt2", vocab_size=128, n_embd=32, n_layer=2, n_head=4)
    )
    with pytest.raises(UnsupportedModelError, match=r"'replay'.* rotary embedding of G"):
        small_policy("replay").cache(model)


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
def test_a_model_of_any_family_keeps_the_budget(family):
    model = tiny_model(family, attn_implementation="eager")
    cache = kvpolicy.recipe("replay", budget=24).cache(model)
    model.generate(torch.arange(1, 101)[None], past_key_values=cache, max_new_tokens=2)
    assert cache.report().held <= 26
