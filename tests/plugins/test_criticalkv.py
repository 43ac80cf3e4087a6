import attrs
import numpy as np
import pytest
import torch

import kvpolicy
from kvpolicy.cache.eviction.one_layer import selected
from kvpolicy.errors import InvalidValueError, UnsupportedModelError
from kvpolicy.stages.smoothing import MeanSmoother, fold_of
from kvpolicy.testing import contract, observation
from kvpolicy_criticalkv import CriticalScorer
from kvpolicy_kernels import projected_norms

test_contract = contract(plugin="criticalkv")

mean = fold_of(MeanSmoother())


def layer_of(seed=0, **fields):
    return observation(positions=80, window=6, groups=3, seed=seed, **{"budget": 30} | fields)


def norms_of(layer, order):
    """|W_h v|, averaged over each group, in float64."""
    weights = layer.output_weight.double().unflatten(1, (-1, layer.values.shape[-1]))
    groups = layer.queries.shape[1] // layer.keys.shape[1]
    values = layer.values.double().repeat_interleave(groups, dim=1)
    projected = torch.einsum("mhd,bhsd->bhsm", weights, values)
    norms = torch.linalg.vector_norm(projected, ord=order, dim=-1)
    return norms.unflatten(1, (-1, groups)).mean(2)


def attention_of(layer, width):
    """The window's attention to the past: averaged, pooled, and averaged over each group."""
    past = layer.length - layer.window
    attention = layer.attention.double().mean(2)[..., :past]
    pooled = torch.nn.functional.avg_pool1d(attention, width, stride=1, padding=width // 2)
    return pooled.unflatten(1, (layer.keys.shape[1], -1)).mean(2)


def kept_by_hand(layer, *, first=0.5, order=1, width=5, epsilon=1e-4):
    """The two stages, as sets, for each key/value head of the first sequence."""
    sets = []
    for attention, norm in zip(
        attention_of(layer, width)[0], norms_of(layer, order)[0], strict=True
    ):
        kept = set(range(layer.length - layer.window, layer.length))
        by_attention = np.argsort(-attention.numpy())
        kept |= set(by_attention[: max(0, int(first * layer.budget) - layer.window)].tolist())
        weighed = (attention + epsilon) * norm[: len(attention)]
        rest = [row for row in np.argsort(-weighed.numpy()).tolist() if row not in kept]
        sets.append(sorted(kept) + rest[: layer.budget - len(kept)])
    return [sorted(rows) for rows in sets]


def kept(layer, **options):
    policy = kvpolicy.recipe(
        "criticalkv", scorer={"name": "criticalkv", "window": 6} | options, budget=layer.budget
    )
    return selected(policy, layer).indices[0].tolist()


@pytest.mark.parametrize(("norm", "order"), [("l1", 1), ("l2", 2)])
@pytest.mark.parametrize("first", [0.0, 0.25, 0.5, 1.0])
def test_both_stages_keep_what_the_formula_says(norm, order, first):
    for seed in range(5):
        layer = layer_of(seed)
        assert kept(layer, norm=norm, first=first) == kept_by_hand(layer, first=first, order=order)


def test_the_size_of_values_decides_the_second_stage():
    layer = layer_of()
    larger = layer.values.clone()
    larger[:, :, 20:23] *= 1000
    loud = attrs.evolve(layer, values=larger)
    assert not all({20, 21, 22} <= set(rows) for rows in kept(layer))
    assert all({20, 21, 22} <= set(rows) for rows in kept(loud))
    assert kept(loud, first=1.0) == kept(layer, first=1.0)


def test_where_all_attention_is_alike_the_largest_values_are_kept():
    layer = layer_of(scaling=0.0)
    rows = kept(layer, first=0.0, width=1)
    norms = norms_of(layer, 1)[0, :, :74]
    assert [each[:-6] for each in rows] == norms.topk(24).indices.sort(-1).values.tolist()


def test_a_larger_epsilon_trusts_attention_less():
    layer = layer_of()
    rows = kept(layer, first=0.0, epsilon=1e6)
    norms = norms_of(layer, 1)[0, :, :74]
    assert [each[:-6] for each in rows] == norms.topk(24).indices.sort(-1).values.tolist()


def test_scores_have_the_values_of_attention():
    layer = layer_of()
    scores = CriticalScorer(window=6).score(layer, mean)
    expected = attention_of(layer, 5).sort(-1, descending=True).values.float()
    got = scores[:, ::3].sort(-1, descending=True).values
    assert torch.equal(got[..., :6].round(decimals=4), torch.ones(1, 2, 6))
    torch.testing.assert_close(got[..., 6:], expected, rtol=1e-4, atol=0)
    assert (got.diff(dim=-1) < 0).all(), "the order must be strict"


def test_query_heads_of_a_group_agree():
    scores = CriticalScorer(window=6).score(layer_of(), mean)
    assert torch.equal(scores, scores[:, ::3].repeat_interleave(3, dim=1))
    assert not torch.equal(scores[:, 0], scores[:, 3])


def test_under_adakv_heads_share_by_their_attention():
    scorers = (
        {"name": "criticalkv", "window": 6, "pooling": "none", "first": first}
        for first in (0.5, 1.0)
    )
    weighed, plain = (
        selected(kvpolicy.compose(scorer=scorer, allocator="adakv", budget=30), layer_of())
        for scorer in scorers
    )
    assert torch.equal(weighed.lengths, plain.lengths)
    assert not torch.equal(weighed.indices, plain.indices)


@pytest.mark.parametrize("order", [1, 2])
def test_norms_do_not_depend_on_the_blocks(order):
    layer = observation(positions=700, model_dim=4096, dim=4, batch=2)
    norms = projected_norms(layer.values, layer.head_weights, order=order)
    torch.testing.assert_close(norms, norms_of(layer, order).float(), rtol=1e-5, atol=0)


def test_norms_of_the_factors_are_those_of_the_projection():
    layer = observation(positions=50)
    norms = projected_norms(layer.values, layer.output_factors, order=2)
    torch.testing.assert_close(norms, norms_of(layer, 2).float(), rtol=1e-5, atol=0)


def test_a_head_alone_is_scored_as_in_its_layer():
    layer = layer_of()
    scorer = CriticalScorer(window=6)
    whole = scorer.score(layer, mean)
    alone = torch.cat([scorer.score(layer.head(n), mean) for n in range(2)], dim=1)
    torch.testing.assert_close(alone, whole)


def test_maximum_pooling_and_none_are_offered():
    layer = layer_of()
    assert kept(layer, pooling="none") == kept_by_hand(layer, width=1)
    assert kept(layer, pooling="max") != kept(layer, pooling="none")


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_a_model_without_an_output_projection_is_refused(norm):
    layer = layer_of(output_weight=None)
    with pytest.raises(UnsupportedModelError, match="which is not known for this model"):
        CriticalScorer(norm=norm).score(layer, mean)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "'window' must be at least 1, not 0"),
        ({"width": 4}, "'width' must be odd, .* not 4"),
        ({"pooling": "adaptive"}, "'pooling' must be one of 'avg', 'max', 'none'"),
        ({"first": 1.5}, r"'first' must be in \[0, 1\], not 1.5"),
        ({"epsilon": 0}, "'epsilon' must be above 0 and finite, not 0.0"),
        ({"norm": "l3"}, "'norm' must be one of 'l1', 'l2', not 'l3'"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(InvalidValueError, match=f"scorer 'criticalkv': {message}"):
        kvpolicy.compose(scorer={"name": "criticalkv", **options})
