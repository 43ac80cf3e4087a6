from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import kvpolicy
from kvpolicy.errors import InvalidValueError, UnsupportedModelError
from kvpolicy.exactness.limits import LIMIT
from kvpolicy.exactness.usages import USAGES, small_policy
from kvpolicy.observation.rotary import PlainRotary, rotated, unrotated
from kvpolicy.stages.grouping import reduce_groups
from kvpolicy.testing import contract, observation
from kvpolicy.testing.models import tiny_model
from kvpolicy_triattention import TrigonometricScorer

test_contract = contract(plugin="triattention")

GOLDEN = np.load(Path(__file__).parent / "golden" / "golden.npz")
BEST = {
    (1024, True, 200): [
        {185: 2.60982, 71: 2.56172, 177: 2.43395, 152: 2.43274, 24: 2.43039, 31: 2.22366},
        {180: 2.82055, 183: 2.77492, 122: 2.49589, 193: 2.38669, 65: 2.38137, 184: 1.94788},
    ],
    (2**16, True, 64): [
        {185: 2.75029, 152: 2.71393, 71: 2.50758, 177: 2.46141, 24: 2.45976, 104: 2.23831},
        {183: 2.64161, 180: 2.60679, 65: 2.52531, 122: 2.4381, 193: 2.21335, 172: 2.04346},
    ],
    (64, False, 200): [
        {152: 19.71831, 71: 19.5827, 24: 19.5459, 185: 18.97522, 104: 18.81051, 31: 18.52447},
        {183: 18.97693, 180: 18.88688, 122: 18.46132, 65: 18.17656, 193: 17.46383, 97: 17.00452},
    ],
}
"""By farthest, normalize and the number of queries: the six best positions of each head on the
golden input F, with their scores. They were computed by the functions of
WeianMao/triattention @c3744ee6, triattention/methods/pruning_utils.py, with these queries."""


def golden(name):
    return torch.from_numpy(GOLDEN[f"input/F/{name}"]).float()


def scores_of(layer, **options):
    return TrigonometricScorer(**options).score(layer, lambda rows: rows.mean(-2))


@pytest.mark.parametrize(("settings", "best"), BEST.items(), ids=str)
def test_the_best_positions_and_their_scores_are_the_authors(settings, best):
    farthest, normalize, count = settings
    rotary = PlainRotary(dim=16)
    queries = golden("hidden_states") @ golden("q_proj_weight").T
    queries = queries.unflatten(-1, (8, 16)).transpose(1, 2)
    layer = kvpolicy.Observation(
        queries=rotated(queries, torch.arange(200), rotary)[:, :, -count:],
        keys=golden("k"),
        values=golden("v"),
        rotary=rotary,
    )
    scores = scores_of(layer, farthest=farthest, normalize=normalize)
    for of_head, expected in zip(reduce_groups(scores, 2, "max")[0], best, strict=True):
        found = of_head.topk(6)
        assert found.indices.tolist() == list(expected)
        # Their phases are float32: an angle of 2**16 is rounded to 1/128 of a radian.
        close = 1e-2 if farthest == 2**16 else 1e-4
        torch.testing.assert_close(
            found.values, torch.tensor(list(expected.values())), rtol=close, atol=0
        )


def as_complex(vectors, pairs, interleaved):
    """The first channels of vectors as complex numbers, and the other channels."""
    part = vectors[..., : 2 * pairs].double()
    halves = (part[..., ::2], part[..., 1::2]) if interleaved else part.chunk(2, -1)
    return torch.complex(*halves), vectors[..., 2 * pairs :].double()


def expected_scores(layer, head, farthest):
    """The equation in double precision, with phases, position by position and pair by pair."""
    rotary, group = layer.rotary, layer.queries.shape[1] // layer.keys.shape[1]
    pairs = rotary.dim // 2
    plain = [
        as_complex(
            unrotated(rows[0, at], positions, rotary), pairs=pairs, interleaved=rotary.interleaved
        )
        for rows, at, positions in (
            (layer.queries, head, layer.query_positions),
            (layer.keys, head // group, layer.positions[0, head // group]),
        )
    ]
    (queries, others), (keys, other_keys) = plain
    angles = rotary.base ** (-torch.arange(pairs).double() / pairs)
    centre, size = queries.mean(0), queries.abs().mean(0)
    offsets = [2**power for power in range(64) if 2**power <= farthest]
    scores = []
    for i, position in enumerate(layer.positions[0, head // group].tolist()):
        logits = [
            sum(
                centre[f].abs()
                * keys[i, f].abs()
                * torch.cos(
                    angles[f] * (layer.seen - position + offset)
                    + (centre[f] * keys[i, f].conj()).angle()
                )
                for f in range(pairs)
            )
            for offset in offsets
        ]
        apart = ((size - centre.abs()) * keys[i].abs()).sum()
        scores.append(sum(logits) / len(logits) + apart + others.mean(0) @ other_keys[i])
    return torch.stack(scores)


@pytest.mark.parametrize(
    "rotary",
    [
        PlainRotary(dim=8, base=100.0),
        PlainRotary(dim=8, base=100.0, interleaved=True),
        PlainRotary(dim=4, base=100.0),
    ],
    ids=["whole", "interleaved", "partial"],
)
@pytest.mark.parametrize(("groups", "window"), [(1, 30), (3, 30), (2, 7)])
def test_scores_are_the_equation_with_phases(rotary, groups, window):
    layer = observation(positions=30, window=window, heads=2, groups=groups, rotary=rotary)
    held = torch.arange(30) * 3
    layer = attrs.evolve(layer, positions=held.expand(1, 2, -1), seen=88)
    raw = scores_of(layer, farthest=100, normalize=False)
    scores = scores_of(layer, farthest=100)
    for head in range(2 * groups):
        expected = expected_scores(layer, head, farthest=100)
        torch.testing.assert_close(raw[0, head].double(), expected, rtol=1e-4, atol=1e-4)
        normal = (expected - expected.mean()) / expected.std(correction=0)
        torch.testing.assert_close(scores[0, head].double(), normal, rtol=1e-4, atol=1e-4)


def test_of_queries_that_are_all_alike_the_score_is_the_mean_of_their_logits():
    rotary, ahead = PlainRotary(dim=8), [41, 42, 44, 48]
    one = observation(positions=40, window=1).queries
    queries = rotated(one.expand(-1, -1, 40, -1), torch.arange(40), rotary)
    layer = attrs.evolve(observation(positions=40, window=40), queries=queries)
    later = torch.stack([rotated(one[:, :, 0], torch.tensor(at), rotary) for at in ahead], 2)
    logits = later @ layer.keys.repeat_interleave(2, 1).mT
    found = scores_of(layer, farthest=8, normalize=False)
    torch.testing.assert_close(found, logits.mean(2), rtol=1e-4, atol=1e-4)


def test_the_soft_cap_and_the_scale_do_not_matter():
    layer = observation(positions=40, window=40)
    other = attrs.evolve(layer, softcap=5.0, scaling=3.0, sink_logits=torch.ones(4))
    assert torch.equal(scores_of(other), scores_of(layer))


def test_blocks_and_batches_give_the_same_scores(monkeypatch):
    layer = observation(positions=700, window=700, batch=3)
    whole = scores_of(layer)
    torch.testing.assert_close(scores_of(layer.row(1)), whole[1:2])
    monkeypatch.setattr("kvpolicy_triattention.scoring.rows_per_block", lambda *_, **__: 7)
    torch.testing.assert_close(scores_of(layer), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [0.0, 1e-20, 1e6])
@pytest.mark.parametrize("positions", [1, 2, 40])
def test_keys_of_any_size_have_finite_scores(size, positions):
    layer = observation(positions=positions, window=positions)
    assert scores_of(attrs.evolve(layer, keys=layer.keys * size)).isfinite().all()


def test_far_into_a_text_distance_alone_matters():
    layer = observation(positions=40, window=40)
    shown = (layer.queries, layer.keys)
    plain = [unrotated(rows, torch.arange(40), layer.rotary) for rows in shown]
    far = torch.arange(40) + 1000
    queries, keys = (rotated(rows, far, layer.rotary) for rows in plain)
    later = attrs.evolve(
        layer, queries=queries, keys=keys, positions=far.expand(1, 2, -1), seen=1040
    )
    torch.testing.assert_close(scores_of(later), scores_of(layer), rtol=1e-3, atol=1e-3)


def test_the_recipe_takes_the_best_query_head_and_evicts_every_128_tokens():
    policy = kvpolicy.recipe("triattention", budget=10)
    assert policy == kvpolicy.compose(scorer="triattention", group="max", every=128, budget=10)
    assert (policy.scorer.window, policy.recent, policy.sinks) == (None, 0, 0)


@torch.no_grad()
def test_while_decoding_it_evicts_by_the_queries_since_the_last_eviction():
    shown = []

    @attrs.frozen(kw_only=True)
    class Watched(TrigonometricScorer):
        def score(self, observation, reduce):
            if observation.layer == 0:
                shown.append((observation.window, observation.length))
            return super().score(observation, reduce)

    model = tiny_model()
    cache = kvpolicy.compose(scorer=Watched(), every=8, budget=16).cache(model)
    model(torch.arange(40)[None], past_key_values=cache)
    for token in range(16):
        model(torch.tensor([[token]]), past_key_values=cache)
        assert cache.policy_layers[0].held <= 16 + 7
    assert shown == [(40, 40), (8, 24), (8, 24)]


@pytest.mark.sampled(4, "usage")
@pytest.mark.parametrize("usage", USAGES)
@torch.no_grad()
def test_every_usage_is_exact_while_it_evicts_every_four_tokens(usage):
    assert USAGES[usage](tiny_model(), small_policy("triattention", every=4)) <= LIMIT


def test_a_model_without_known_rotary_embedding_is_refused():
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("gpt2", vocab_size=128, n_embd=32, n_layer=2, n_head=4)
    )
    with pytest.raises(UnsupportedModelError, match=r"'triattention'.* rotary embedding of G"):
        small_policy("triattention").cache(model)
    with pytest.raises(UnsupportedModelError, match=r"'triattention' turns queries .* not known"):
        scores_of(observation(rotary=None))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("farthest", 0, "'farthest' must be at least 1, not 0"),
        ("farthest", 2**21, "'farthest' must be at most 1048576, not 2097152"),
        ("normalize", "no", "'normalize' must be True or False, not 'no'"),
    ],
)
def test_mistakes_are_named(option, value, message):
    with pytest.raises(InvalidValueError, match=f"scorer 'triattention': {message}"):
        kvpolicy.compose(scorer={"name": "triattention", option: value})
