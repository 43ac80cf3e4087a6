import attrs
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import kvpolicy
from kvpolicy.errors import InvalidValueError, UnsupportedModelError
from kvpolicy.observation.replay import most_attended, replayed
from kvpolicy.pipeline.capabilities import ModelFacts
from kvpolicy.stages.smoothing import MeanSmoother, fold_of
from kvpolicy.testing import contract, observation
from kvpolicy.testing.models import tiny_model
from kvpolicy.testing.samples import normal
from kvpolicy_forward import ForwardScorer
from kvpolicy_forward.queries import asked

test_contract = contract(plugin="forward")
mean = fold_of(MeanSmoother())


def attention_of(queries, layer):
    """The attention of each query in float64, as [N, G, M, S]."""
    keys = layer.keys[0].double().repeat_interleave(2, 0)
    logits = queries.rows[0].double() @ keys.mT * queries.scaling
    later = torch.arange(layer.length) >= queries.seen[:, None]
    return logits.masked_fill(later, -torch.inf).softmax(-1).unflatten(0, (-1, 2))


def error_of(kept, attention, weights, layer, head):
    """The error of a set by renormalising attention, every head's output projected."""
    values, columns = layer.values[0, head].double(), layer.output_weight.double()
    change = 0
    for group in range(2):
        a = attention[head, group]
        held = a * kept
        moved = held @ values / held.sum(-1, keepdim=True).clamp_min(1e-300) - a @ values
        first = (2 * head + group) * 8
        change = change + moved @ columns[:, first : first + 8].mT
    return (weights * change.square().sum(-1)).sum()


def greedy(attention, weights, layer, head, steps, near):
    """Forward selection written out: the first step by attention, each other by errors."""
    kept = (torch.arange(layer.length) >= layer.length - near).double()
    sets = []
    for step, count in enumerate(steps):
        if step == 0:
            gains = torch.einsum("m,gms->s", weights, attention[head])
        else:
            trials = [kept.clone() for _ in range(layer.length)]
            for place, trial in enumerate(trials):
                trial[place] = 1
            gains = -torch.stack(
                [error_of(each, attention, weights, layer, head) for each in trials]
            )
        order = gains.masked_fill(kept > 0, torch.inf).topk(count).indices
        kept[order] = 1
        sets.append(set(kept.nonzero().flatten().tolist()))
    return sets


@pytest.mark.parametrize("hops", [0, 2])
def test_positions_are_added_by_the_error_of_the_set(hops):
    layer = observation(positions=20, window=20, budget=12)
    scorer = ForwardScorer(hops=hops, last=4, tokens=3, near=2, rounds=3, width=1)
    scores = scorer.score(layer, mean)
    queries = asked(layer, mean, last=4, hops=hops, tokens=3, near=2)
    attention, weights = attention_of(queries, layer), queries.weights[0].double()
    for head in range(2):
        steps = (6, 8, 10, 12)
        for count, kept in zip(
            steps, greedy(attention, weights, layer, head, steps, 2), strict=True
        ):
            best = scores[0, 2 * head].topk(count).indices.tolist()
            assert set(best) == kept
    assert torch.equal(scores[:, ::2], scores[:, 1::2])


def test_the_queries_are_the_last_ones_and_those_of_each_replay():
    layer = observation(positions=20, window=16, seen=25)
    given = asked(layer, mean, last=4, hops=2, tokens=3, near=4)
    last = attrs.evolve(layer, queries=layer.queries[:, :, -4:])
    first = most_attended(layer, last.attention.mean(2), tokens=3, near=4)
    once = replayed(layer, first.places)
    folded = torch.einsum("m,bhms->bhs", first.shares[0], once.attention)
    second = most_attended(layer, folded, tokens=3, near=4)
    rows = torch.cat([last.queries, once.queries, replayed(layer, second.places).queries], 2)
    shares = torch.cat([torch.full((4,), 0.25), first.shares[0], second.shares[0]])
    attention = [last.attention, once.attention, replayed(layer, second.places).attention]
    values = layer.values.repeat_interleave(2, 1)
    outputs = torch.cat(attention, 2) @ values
    sizes = (outputs.transpose(1, 2).flatten(-2) @ layer.output_weight.mT).norm(dim=-1)

    torch.testing.assert_close(given.rows, rows)
    torch.testing.assert_close(given.weights, shares / sizes.square(), rtol=1e-4, atol=1e-6)
    assert given.seen.tolist() == [17, 18, 19, 20, *[20] * 6]


def test_positions_that_say_the_same_are_not_all_kept():
    """Errors of single positions call each of six dispensable, and attention calls all needed."""
    values = torch.zeros(1, 1, 12, 8)
    values[..., :6, 0], values[..., 6, 1], values[..., 7, 2] = 4, 9, 9
    keys = torch.zeros(1, 1, 12, 8)
    keys[..., :6, 0], keys[..., 6:8, 0] = 5, 4.5
    layer = observation(
        heads=1,
        groups=1,
        positions=12,
        queries=torch.ones(1, 1, 12, 8),
        keys=keys,
        values=values,
        output_weight=torch.eye(8),
        budget=7,
    )
    options = {"hops": 0, "last": 1, "near": 0, "width": 1, "rounds": 3}
    kept = ForwardScorer(**options).score(layer, mean)[0, 0].topk(7).indices.tolist()
    by_attention = layer.attention[0, 0, -1].topk(6).indices.tolist()
    assert {6, 7} <= set(kept)
    assert not {6, 7} & set(by_attention)


def test_a_smaller_budget_keeps_what_was_added_first():
    layer = observation(positions=30, window=30, budget=20)
    scores = ForwardScorer(near=2).score(layer, mean)[0, 0]
    assert scores[-2:].amin() > scores[:-2].amax()
    counts = ForwardScorer(near=2)._counts(20)
    assert counts == [6, 9, 13, 16, 20]
    assert len(scores[:-2].unique()) == 28


@pytest.mark.parametrize("budget", [1, 2, 3, 9, 30])
def test_any_budget_will_do(budget):
    layer = observation(positions=30, window=30, budget=budget)
    assert ForwardScorer().score(layer, mean).isfinite().all()


def test_a_prompt_too_short_to_replay_is_judged_by_its_last_queries():
    layer = observation(positions=5, window=5, budget=3)
    scores = ForwardScorer(near=4).score(layer, mean)
    torch.testing.assert_close(scores, ForwardScorer(near=4, hops=0).score(layer, mean))


def test_what_a_model_must_show_follows_from_the_options():
    assert ForwardScorer().needs == ("rotary", "output_weight")
    assert ForwardScorer(hops=0).needs == ("output_weight",)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 8, "budget": 64}, r"every=8 .*'forward'.* whole prompt"),
        ({"budget": kvpolicy.within(0.1)}, "'forward'"),
    ],
)
def test_settings_that_it_cannot_follow_are_refused(settings, message):
    with pytest.raises(InvalidValueError, match=message):
        kvpolicy.compose(scorer="forward", recent=4, **settings)


def test_layers_that_share_keys_are_refused():
    facts = ModelFacts(name="Some", layers=2, heads=4, kv_heads=2, has_rotary=True, readers=2)
    with pytest.raises(UnsupportedModelError, match="'forward' measures the joint output"):
        ForwardScorer().check_model(facts)


def test_a_model_without_known_rotary_embedding_is_refused_where_queries_are_replayed():
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("gpt2", vocab_size=128, n_embd=32, n_layer=2, n_head=4)
    )
    policy = kvpolicy.compose(scorer="forward", recent=4, budget=16)
    with pytest.raises(UnsupportedModelError, match=r"'forward'.* rotary embedding of G"):
        policy.cache(model)


@pytest.mark.parametrize("allocator", ["uniform", "adakv", "layerdefensivekv"])
def test_heads_and_layers_can_be_compared(allocator):
    model = tiny_model()
    policy = kvpolicy.compose(scorer="forward", allocator=allocator, recent=4, budget=24)
    cache = policy.cache(model)
    model(normal(0, 1, 100).abs().mul(30).long() + 1, past_key_values=cache)
    assert cache.report().held <= 24 * (1 if allocator == "uniform" else 4)


def test_more_rounds_than_positions_add_one_at_a_time():
    layer = observation(positions=30, window=30, budget=14)
    few, many = (
        ForwardScorer(hops=0, rounds=rounds).score(layer, lambda rows: rows.mean(-2))
        for rounds in (14, 2**53)
    )
    assert torch.equal(few, many)


def test_hops_have_a_limit():
    with pytest.raises(InvalidValueError, match="'hops' must be at most 32"):
        ForwardScorer(hops=33)
