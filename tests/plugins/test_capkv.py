from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import kvpolicy
from kvpolicy.cache.eviction.one_layer import selected
from kvpolicy.errors import InvalidValueError, UnsupportedModelError
from kvpolicy.exactness.usages import small_policy
from kvpolicy.observation.rotary import PlainRotary, rotated, unrotated
from kvpolicy.stages.grouping import reduce_groups
from kvpolicy.testing import contract, observation
from kvpolicy_capkv import CapacityScorer
from kvpolicy_kernels.common.pytorch import blocks

test_contract = contract(plugin="capkv")

GOLDEN = np.load(Path(__file__).parent / "golden" / "golden.npz")
BEST = {
    (5.0, 4, 512): [
        {56: 0.292689, 178: 0.223632, 193: 0.203305, 138: 0.199134, 176: 0.193275, 197: 0.18703},
        {86: 0.267354, 162: 0.215593, 66: 0.212241, 191: 0.209151, 196: 0.208426, 97: 0.207967},
    ],
    (2.0, 8, 64): [
        {101: 0.190706, 99: 0.176083, 70: 0.169709, 111: 0.159299, 24: 0.154285, 17: 0.152523},
        {191: 0.224396, 97: 0.216771, 150: 0.201449, 143: 0.178444, 155: 0.170035, 103: 0.168415},
    ],
}
"""By tau, sinks and future: the six best positions of each head on the golden input F, with their
scores. They were computed by NVIDIA/kvpress @8bb29b9c, presses/cap_press.py."""


def mean(values):
    return values.mean(-2)


def golden(name):
    return torch.from_numpy(GOLDEN[f"input/F/{name}"]).float()


@pytest.mark.parametrize(("options", "best"), BEST.items(), ids=str)
def test_the_best_positions_and_their_scores_are_those_of_kvpress(options, best):
    tau, sinks, future = options
    rotary = PlainRotary(dim=16)
    queries = golden("hidden_states") @ golden("q_proj_weight").T
    queries = queries.unflatten(-1, (8, 16)).transpose(1, 2)
    layer = kvpolicy.Observation(
        queries=rotated(queries, torch.arange(200), rotary),
        keys=golden("k"),
        values=golden("v"),
        rotary=rotary,
    )
    scorer = CapacityScorer(tau=tau, sinks=sinks, future=future)
    scores = reduce_groups(scorer.score(layer, mean), 2, "mean")[0, :, sinks:]
    for of_head, expected in zip(scores, best, strict=True):
        found = of_head.topk(6)
        assert (found.indices + sinks).tolist() == list(expected)
        # Theirs adds 1e-6 to the weights in A.
        torch.testing.assert_close(
            found.values, torch.tensor(list(expected.values())), rtol=1e-4, atol=0
        )


def expected_scores(layer, head, *, tau, sinks, future, cosine):
    """The equations in double precision, position by position."""
    rotary, seen = layer.rotary, layer.seen
    rows = [
        (position, query.double())
        for position, query in zip(
            layer.query_positions,
            unrotated(layer.queries, layer.query_positions, rotary)[0, head],
            strict=True,
        )
        if position >= sinks
    ]
    centre = sum(query for _, query in rows) / len(rows)
    ahead = torch.arange(seen, seen + future)
    mu = torch.stack([rotated(centre.float(), at, rotary) for at in ahead]).double().mean(0)
    group = layer.queries.shape[1] // layer.keys.shape[1]
    keys, values = (x[0, head // group].double() for x in (layer.keys, layer.values))
    past = (layer.positions[0, head // group] >= sinks).nonzero()[:, 0].tolist()
    logits = {}
    for i in past:
        product = keys[i] @ mu
        logits[i] = tau * (product / (keys[i].norm() * mu.norm()) if cosine else product)
    largest = max(logits.values())
    weights = {i: (logit - largest).exp() for i, logit in logits.items()}
    capacity = torch.eye(values.shape[1]).double()
    for i, weight in weights.items():
        capacity += weight * torch.outer(values[i], values[i])
    return {
        i: (w * values[i] @ torch.linalg.solve(capacity, values[i])) for i, w in weights.items()
    }


@pytest.mark.parametrize(
    "rotary",
    [
        PlainRotary(dim=8, base=100.0),
        PlainRotary(dim=8, base=100.0, interleaved=True),
        PlainRotary(dim=4, base=100.0),
    ],
    ids=["whole", "interleaved", "partial"],
)
@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
def test_scores_are_the_equations(rotary, cosine, groups):
    layer = observation(positions=40, window=40, heads=2, groups=groups, rotary=rotary)
    options = {"tau": 2.0, "sinks": 3, "future": 5, "cosine": cosine}
    scores = CapacityScorer(**options).score(layer, mean)
    for head in range(2 * groups):
        expected = expected_scores(layer, head, **options)
        found = {i: scores[0, head, i].item() for i in expected}
        assert found == pytest.approx({i: s.item() for i, s in expected.items()}, rel=1e-4)
        assert (scores[0, head, :3] == scores[0, head, 3:].max()).all()


def test_of_values_that_say_the_same_few_are_kept():
    """Nine equal values share one direction; the tenth has another direction for itself."""
    layer = observation(positions=10, window=10)
    values = torch.zeros(1, 2, 10, 8)
    values[..., :9, 0], values[..., 9, 1] = 1.0, 1.0
    alike = layer.keys[:, :, :1].expand_as(layer.keys)
    layer = attrs.evolve(layer, keys=alike, values=values)
    scores = CapacityScorer(sinks=0).score(layer, mean)
    torch.testing.assert_close(scores[..., :9], torch.full((1, 4, 9), 1 / 10))
    torch.testing.assert_close(scores[..., 9], torch.full((1, 4), 1 / 2))


def test_the_soft_cap_and_the_scale_do_not_matter():
    layer = observation(positions=40, window=40)
    other = attrs.evolve(layer, softcap=5.0, scaling=3.0, sink_logits=torch.ones(4))
    scorer = CapacityScorer()
    assert torch.equal(scorer.score(other, mean), scorer.score(layer, mean))


def test_blocks_and_batches_give_the_same_scores(monkeypatch):
    layer = observation(positions=700, window=700, batch=3)
    scorer = CapacityScorer()
    whole = scorer.score(layer, mean)
    torch.testing.assert_close(scorer.score(layer.row(1), mean), whole[1:2])
    monkeypatch.setattr(blocks, "CACHED_BYTES", 4096)
    torch.testing.assert_close(scorer.score(layer, mean), whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("positions", [1, 3, 4, 5])
def test_a_sequence_of_hardly_more_than_sinks_has_finite_scores(positions):
    layer = observation(positions=positions, window=positions)
    assert CapacityScorer().score(layer, mean).isfinite().all()


@pytest.mark.parametrize("size", [0.0, 1e-20, 1e6])
def test_values_and_keys_of_any_size_have_finite_scores(size):
    layer = observation(positions=60, window=60)
    layer = attrs.evolve(layer, keys=layer.keys * size, values=layer.values * size)
    scores = CapacityScorer().score(layer, mean)
    assert scores.isfinite().all()
    assert (scores >= 0).all()


def test_the_recipe_protects_the_sinks_alone():
    policy = kvpolicy.recipe("capkv", budget=10)
    assert policy == kvpolicy.compose(scorer="capkv", sinks=4, budget=10)
    assert (policy.scorer.window, policy.recent) == (None, 0)

    kept = selected(policy, observation(positions=100, window=100)).indices

    assert kept.shape[-1] == 10
    assert torch.equal(kept[..., :4], torch.arange(4).expand(1, 2, -1))


def test_it_does_not_judge_while_decoding():
    with pytest.raises(InvalidValueError, match=r"every=8 .*'capkv'.* whole prompt"):
        kvpolicy.recipe("capkv", every=8)


def test_a_model_without_known_rotary_embedding_is_refused():
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("gpt2", vocab_size=128, n_embd=32, n_layer=2, n_head=4)
    )
    with pytest.raises(UnsupportedModelError, match=r"'capkv'.* rotary embedding of G"):
        small_policy("capkv").cache(model)
    with pytest.raises(UnsupportedModelError, match=r"scorer 'capkv' turns queries .* not known"):
        CapacityScorer().score(observation(rotary=None), mean)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("tau", 0.0, "'tau' must be above 0 and finite, not 0.0"),
        ("future", 0, "'future' must be at least 1, not 0"),
        ("sinks", -1, "'sinks' must be at least 0, not -1"),
        ("cosine", "no", "'cosine' must be True or False, not 'no'"),
    ],
)
def test_mistakes_are_named(option, value, message):
    with pytest.raises(InvalidValueError, match=f"scorer 'capkv': {message}"):
        kvpolicy.compose(scorer={"name": "capkv", option: value})


def test_a_tau_that_overflows_is_refused():
    with pytest.raises(InvalidValueError, match="'tau' must be at most"):
        CapacityScorer(tau=1e39)
    assert CapacityScorer(tau=1e6).score(observation(), mean).isfinite().all()
