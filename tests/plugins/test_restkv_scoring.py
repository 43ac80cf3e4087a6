import attrs
import pytest
import torch

import kvpolicy
from kvpolicy.cache.eviction.one_layer import selected
from kvpolicy.errors import (
    InvalidOptionError,
    InvalidValueError,
    KvpolicyError,
    UnsupportedModelError,
)
from kvpolicy.stages.smoothing import fold_of
from kvpolicy.testing import observation
from kvpolicy_restkv import (
    ReconstructionScorer,
    SpatiotemporalSmoother,
    WindowedReconstructionScorer,
)

NEWEST = fold_of(SpatiotemporalSmoother(averaging="none"))
EMA = fold_of(SpatiotemporalSmoother(averaging="ema"))


def leave_one_out(attention, layer):
    """||W_h (o_without_i - o)||, by renormalising without i, in float64: [B H S] -> [B H S]."""
    groups = layer.queries.shape[1] // layer.keys.shape[1]
    values = layer.values.double().repeat_interleave(groups, dim=1)
    blocks = layer.output_weight.double().unflatten(1, (layer.queries.shape[1], -1))
    output = torch.einsum("bhs,bhsd->bhd", attention, values)
    errors = []
    for position in range(layer.length):
        rest = attention.clone()
        rest[..., position] = 0
        rest = rest / rest.sum(-1, keepdim=True)
        change = torch.einsum("bhs,bhsd->bhd", rest, values) - output
        errors.append(torch.einsum("mhd,bhd->bhm", blocks, change).norm(dim=-1))
    return torch.stack(errors, dim=-1)


@pytest.mark.parametrize("groups", [1, 3])
def test_the_windowed_score_is_the_leave_one_out_error_of_a_query(groups):
    layer = observation(groups=groups, positions=20)
    newest = layer.attention.double()[:, :, -1]

    scores = WindowedReconstructionScorer().score(layer, NEWEST)

    torch.testing.assert_close(scores.double(), leave_one_out(newest, layer), rtol=1e-4, atol=1e-6)


def test_the_windowed_score_averages_the_errors_of_the_queries():
    layer = observation(positions=20)
    rows = layer.attention.double().unbind(2)
    errors = torch.stack([leave_one_out(row, layer) for row in rows], dim=2)

    scores = WindowedReconstructionScorer().score(layer, EMA)

    torch.testing.assert_close(scores.double(), EMA(errors), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("groups", [1, 3])
def test_with_the_window_in_o_the_score_is_the_leave_one_out_error_of_the_average(groups):
    layer = observation(groups=groups, positions=20)
    averaged = EMA(layer.attention.double())

    scores = ReconstructionScorer(o_includes_window=True).score(layer, EMA)

    torch.testing.assert_close(
        scores.double(), leave_one_out(averaged, layer), rtol=1e-4, atol=1e-6
    )


def test_the_published_o_leaves_the_windows_values_out():
    layer = observation(positions=20)
    moved = attrs.evolve(layer, values=layer.values.clone())
    moved.values[:, :, -layer.window :] += 1
    past = slice(0, layer.length - layer.window)

    published, ours = ReconstructionScorer(), ReconstructionScorer(o_includes_window=True)

    same = published.score(layer, EMA)[..., past], published.score(moved, EMA)[..., past]
    assert torch.equal(*same)
    assert not torch.equal(ours.score(layer, EMA)[..., past], ours.score(moved, EMA)[..., past])


@pytest.mark.parametrize("kind", [ReconstructionScorer, WindowedReconstructionScorer])
def test_value_space_is_the_identity_as_projection(kind):
    layer = observation(output_weight=torch.eye(32))
    output, value = (kind(projection=p) for p in ("output", "value"))
    torch.testing.assert_close(output.score(layer, EMA), value.score(layer, EMA))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("window", [1, 3, 20])
def test_any_fold_gives_what_the_weighted_sum_gives(normalize, window):
    layer = observation(positions=20, window=window)
    scorer = WindowedReconstructionScorer(normalize=normalize)
    torch.testing.assert_close(scorer.score(layer, EMA.temporal), scorer.score(layer, EMA))


def test_a_maximum_over_the_window_folds_the_errors_of_the_queries():
    layer = observation(positions=20)
    scorer = WindowedReconstructionScorer()
    one_hot = [scorer.score(layer, fold_of(_Only(query=query))) for query in range(layer.window)]
    largest = scorer.score(layer, lambda errors: errors.amax(-2))
    torch.testing.assert_close(largest, torch.stack(one_hot).amax(0))


@attrs.frozen(kw_only=True)
class _Only:
    query: int

    def weights(self, window):
        return torch.eye(window)[self.query]

    def temporal(self, values):
        return values[..., self.query, :]

    def spatial(self, scores, observation):
        return scores


@pytest.mark.parametrize("kind", [ReconstructionScorer, WindowedReconstructionScorer])
@pytest.mark.parametrize("projection", ["output", "value"])
def test_a_position_with_all_the_attention_scores_high_and_finite(kind, projection):
    layer = observation(positions=20)
    keys = layer.keys.clone()
    keys[:, :, 3] = 0
    keys[:, :, 3, 0] = 1e4
    queries = layer.queries.clone()
    queries[..., 0] = 10
    layer = attrs.evolve(layer, keys=keys, queries=queries)
    assert layer.attention[..., 3].eq(1).all()

    scores = kind(projection=projection).score(layer, EMA)

    assert scores.isfinite().all()
    if kind is ReconstructionScorer:
        # o is that position's value but for its window part: nothing is lost, and no NaN arises.
        assert scores.ge(0).all()


@pytest.mark.parametrize("kind", [ReconstructionScorer, WindowedReconstructionScorer])
@pytest.mark.parametrize("positions", [1, 2, 5])
def test_a_prompt_that_is_all_window_is_scored(kind, positions):
    layer = observation(window=positions, positions=positions)
    scores = kind().score(layer, EMA)
    assert scores.shape == (1, 4, positions)
    assert scores.isfinite().all()


@pytest.mark.parametrize("kind", [ReconstructionScorer, WindowedReconstructionScorer])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_scored_in_float32(kind, dtype):
    layer = observation(dtype=dtype)
    wide = attrs.evolve(
        layer,
        queries=layer.queries.float(),
        keys=layer.keys.float(),
        values=layer.values.float(),
        output_weight=layer.output_weight.float(),
    )
    scorer = kind()
    scores = scorer.score(layer, EMA)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, scorer.score(wide, EMA))


def test_tau_is_the_power_of_the_norm():
    layer = observation(positions=20)
    odds = EMA(layer.attention) / (1 - EMA(layer.attention))
    one, two = (ReconstructionScorer(tau=tau).score(layer, EMA) for tau in (1.0, 2.0))
    torch.testing.assert_close(two, odds * (one / odds) ** 2)


@pytest.mark.parametrize(
    ("kind", "name"),
    [(ReconstructionScorer, "restkv"), (WindowedReconstructionScorer, "windowedrestkv")],
)
def test_a_model_that_hides_its_output_projection_is_refused_with_the_way_out(kind, name):
    layer = observation(output_weight=None)
    with pytest.raises(UnsupportedModelError, match=f"scorer '{name}' .* projection='value'"):
        kind().score(layer, EMA)
    assert kind(projection="value").score(layer, EMA).isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "'window' must be at least 1, not 0"),
        ({"window": True}, "'window' must be an int, not True"),
        ({"window": "x"}, "'window' must be an int, not 'x'"),
        ({"window": 2.0}, "'window' must be an int, not 2.0"),
        ({"projection": None}, "'projection' must be one of .*'output', 'value'.*None"),
        ({"tau": 0.0}, "'tau' must be above 0 and finite, not 0.0"),
        ({"tau": 9}, "'tau' must be at most 8, not 9.0"),
        ({"tau": float("nan")}, "'tau' must be above 0 and finite, not nan"),
        ({"tau": "x"}, "'tau' must be a number, not 'x'"),
        ({"o_includes_window": 1}, "'o_includes_window' must be True or False, not 1"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(InvalidValueError, match=message):
        ReconstructionScorer(**options)
    with pytest.raises(InvalidValueError, match=f"scorer 'restkv': {message}"):
        kvpolicy.compose(scorer={"name": "restkv", **options})


def test_an_option_of_another_scorer_is_named():
    with pytest.raises(InvalidOptionError, match="scorer 'restkv' has no option 'normalize'"):
        kvpolicy.compose(scorer={"name": "restkv", "normalize": True})
    with pytest.raises(InvalidOptionError, match="scorer 'windowedrestkv' has no option 'tau'"):
        kvpolicy.compose(scorer={"name": "windowedrestkv", "tau": 2.0})
    with pytest.raises(InvalidValueError, match="'normalize' must be True or False, not 1"):
        WindowedReconstructionScorer(normalize=1)


def test_the_recipe_is_the_published_setting():
    policy = kvpolicy.recipe("restkv", budget=128)
    assert policy == kvpolicy.compose(scorer="restkv", smoother="spatiotemporal", budget=128)
    assert policy.recent == policy.scorer.window == 32
    assert type(policy.scorer) is ReconstructionScorer
    assert policy.scorer.projection == "output"
    assert policy.scorer.tau == 1.0
    assert not policy.scorer.o_includes_window
    assert (policy.smoother.averaging, policy.smoother.alpha) == ("ema", 0.3)
    assert (policy.smoother.pooling, policy.smoother.width, policy.smoother.scale) == (
        "adaptive",
        5,
        2000,
    )


def test_a_policy_names_the_scorer_that_cannot_be_served():
    layer = observation(positions=60, window=32, output_weight=None)
    with pytest.raises(KvpolicyError) as caught:
        selected(kvpolicy.recipe("restkv", budget=40), layer)
    assert any("restkv" in note for note in caught.value.__notes__)
