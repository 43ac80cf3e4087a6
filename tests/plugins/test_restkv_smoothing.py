import attrs
import pytest
import torch
import torch.nn.functional as F

import kvpolicy
from kvpolicy import testing
from kvpolicy.errors import InvalidValueError
from kvpolicy_kernels import adaptive_pooling
from kvpolicy_restkv import SpatiotemporalSmoother
from kvpolicy_restkv.drift import attention_drift


def observation(*, window=4, positions=40, **fields):
    budget = fields.pop("budget", window + 6)
    return testing.observation(window=window, positions=positions, budget=budget, **fields)


def row(layer, index):
    one = slice(index, index + 1)
    return attrs.evolve(
        layer,
        queries=layer.queries[one],
        keys=layer.keys[one],
        values=layer.values[one],
        positions=layer.positions[one],
    )


def scores_of(layer, seed=1):
    shape = (*layer.queries.shape[:2], layer.length)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.9, 1.0, 1])
@pytest.mark.parametrize("window", [1, 2, 7, 32])
def test_the_weights_are_the_exponential_average(alpha, window):
    rows = torch.randn(window, 3, dtype=torch.float64)
    expected = rows[0]
    for values in rows[1:]:
        expected = alpha * values + (1 - alpha) * expected

    smoother = SpatiotemporalSmoother(alpha=alpha)

    torch.testing.assert_close(smoother.temporal(rows), expected, rtol=0, atol=1e-14)
    assert smoother.weights(window).sum() == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize("window", [1, 2, 7])
def test_other_averages_are_weights_too(window):
    weights = {
        averaging: SpatiotemporalSmoother(averaging=averaging).weights(window).tolist()
        for averaging in ("ema", "mean", "none", "inverse")
    }
    assert weights["mean"] == pytest.approx([1 / window] * window)
    assert weights["none"] == [0.0] * (window - 1) + [1.0]
    assert weights["inverse"] == weights["ema"][::-1]
    assert SpatiotemporalSmoother(alpha=1).weights(window).tolist() == weights["none"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_temporal_keeps_the_dtype_and_the_leading_shape(dtype):
    folded = SpatiotemporalSmoother().temporal(torch.ones(2, 3, 5, 7, dtype=dtype))
    assert folded.dtype == dtype
    assert folded.shape == (2, 3, 7)


@pytest.mark.parametrize(
    ("drift", "width", "shift"),
    [
        (0.0, 5, 1),
        (-0.0, 5, 1),
        (0.5, 5, 0),
        (-0.5, 5, 0),
        (4.0, 5, 1),
        (-4.0, 5, 0),
        (-4.5, 5, -1),
        (11.9, 5, 2),
        (12.0, 7, 3),
        (-12.0, 7, -2),
        (-13.0, 7, -3),
    ],
)
def test_width_and_shift_follow_the_drift_as_in_the_authors_code(drift, width, shift):
    drift = torch.tensor([[drift]], dtype=torch.float64)
    widths, shifts = adaptive_pooling(drift, width=5, scale=4.0)
    assert (widths.item(), shifts.item()) == (width, shift)


@pytest.mark.parametrize("window", [2, 3, 4, 9])
@pytest.mark.parametrize("groups", [1, 2])
def test_drift_compares_where_the_halves_of_the_window_look(window, groups):
    layer = observation(batch=2, groups=groups, window=window)
    best = layer.attention.double().topk(layer.budget - window).indices.double()
    front, rear = best[:, :, : window // 2], best[:, :, window // 2 :]
    expected = front.mean((-2, -1)) - rear.mean((-2, -1))
    torch.testing.assert_close(attention_drift(layer), expected, rtol=0, atol=1e-12)


def test_halves_that_look_at_the_same_positions_do_not_drift():
    layer = observation(window=6)
    front = layer.queries[:, :, :3]
    keys = layer.keys.clone()
    keys[:, :, -6:] = 0
    keys[..., 0] = 0
    layer = attrs.evolve(layer, queries=torch.cat([front, front.flip(2)], dim=2), keys=keys)
    keys[:, :, -6:, 0] = -100
    layer.queries[..., 0] = 1
    assert attention_drift(layer).eq(0).all()


def test_one_query_or_a_budget_of_the_window_alone_has_no_drift():
    assert attention_drift(observation(window=1)) is None
    assert attention_drift(observation(window=4, budget=4)) is None
    assert attention_drift(observation(window=4, budget=3)) is None
    assert attention_drift(observation(window=4, positions=4)) is None
    assert attention_drift(observation(window=4, budget=5)) is not None


@pytest.mark.parametrize("scale", [0.5, 3.0, 2000.0])
@pytest.mark.parametrize("window", [1, 2, 5, 8])
def test_adaptive_pooling_is_a_shifted_mean_that_repeats_the_edges(scale, window):
    layer = observation(batch=2, groups=2, window=window)
    scores, past = scores_of(layer), layer.length - window
    drift = attention_drift(layer)
    if drift is None:
        widths, shifts = torch.full((2, 4), 3), torch.zeros(2, 4, dtype=torch.long)
    else:
        widths, shifts = adaptive_pooling(drift, width=3, scale=scale)

    smoothed = SpatiotemporalSmoother(width=3, scale=scale).spatial(scores, layer)

    for b, h in torch.cartesian_prod(torch.arange(2), torch.arange(4)).tolist():
        width, shift = int(widths[b, h]), int(shifts[b, h])
        around = torch.arange(past)[:, None] + torch.arange(width) - width // 2 + shift
        expected = scores[b, h, around.clamp(0, past - 1)].mean(-1)
        torch.testing.assert_close(smoothed[b, h, :past], expected)


@pytest.mark.parametrize("pooling", ["adaptive", "avg", "max", "none"])
def test_the_windows_scores_stay_as_they_are(pooling):
    layer = observation()
    scores = scores_of(layer)
    scores[..., -layer.window :] += 1e6
    smoothed = SpatiotemporalSmoother(pooling=pooling, scale=3).spatial(scores, layer)
    assert torch.equal(smoothed[..., -layer.window :], scores[..., -layer.window :])
    assert smoothed[..., : -layer.window].max() <= 1, "the window leaked into the past"


@pytest.mark.parametrize("pooling", ["adaptive", "avg", "max", "none"])
@pytest.mark.parametrize("scale", [1.0, 2000.0])
def test_a_sink_stays_out_of_the_sums_that_do_not_hold_it(pooling, scale):
    layer = observation(positions=400)
    drift = attention_drift(layer)
    widths, shifts = adaptive_pooling(drift, width=5, scale=scale)
    reach = int((widths // 2 + shifts.abs()).max())
    calm = scores_of(layer)
    sink = calm.clone()
    sink[..., 0] = 1e12
    smoother = SpatiotemporalSmoother(pooling=pooling, scale=scale)
    calm, sink = smoother.spatial(calm, layer), smoother.spatial(sink, layer)
    assert torch.equal(calm[..., reach + 1 :], sink[..., reach + 1 :])


@pytest.mark.parametrize("width", [1, 5])
def test_avg_counts_zeros_outside_and_max_does_not(width):
    layer = observation()
    scores, past = -scores_of(layer), layer.length - layer.window
    avg, max_ = (
        SpatiotemporalSmoother(pooling=pooling, width=width).spatial(scores, layer)[..., :past]
        for pooling in ("avg", "max")
    )
    expected = F.avg_pool1d(scores[..., :past], width, stride=1, padding=width // 2)
    torch.testing.assert_close(avg, expected)
    expected = F.max_pool1d(scores[..., :past], width, stride=1, padding=width // 2)
    torch.testing.assert_close(max_, expected)


@pytest.mark.parametrize("pooling", ["adaptive", "avg", "max", "none"])
def test_a_prompt_that_is_all_window_is_left_alone(pooling):
    layer = observation(window=5, positions=5)
    scores = scores_of(layer)
    assert torch.equal(SpatiotemporalSmoother(pooling=pooling).spatial(scores, layer), scores)


def test_by_default_a_sequence_ignores_its_batch_mates():
    layer = observation(batch=2, window=8)
    scores = scores_of(layer)
    smoother = SpatiotemporalSmoother(scale=1)
    alone = [smoother.spatial(scores[b : b + 1], row(layer, b)) for b in range(2)]
    assert torch.equal(smoother.spatial(scores, layer), torch.cat(alone))


def test_the_authors_code_uses_the_first_rows_drift_for_all():
    layer = observation(batch=2, window=8)
    assert not torch.equal(*attention_drift(layer).unbind(0))
    scores = scores_of(layer)
    smoother = SpatiotemporalSmoother(scale=1, drift="first")

    both = smoother.spatial(scores, layer)

    for b in range(2):
        alone = smoother.spatial(scores[b : b + 1], row(layer, 0))
        assert torch.equal(both[b : b + 1], alone)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 4}, "'width' must be odd, .* not 4"),
        ({"width": 0}, "'width' must be at least 1, not 0"),
        ({"width": True}, "'width' must be an int, not True"),
        ({"width": "x"}, "'width' must be an int, not 'x'"),
        ({"alpha": 0}, "'alpha' must be above 0 and finite, not 0"),
        ({"alpha": 1.5}, "'alpha' must be at most 1, not 1.5"),
        ({"alpha": None}, "'alpha' must be a number, not None"),
        ({"scale": 0}, "'scale' must be above 0 and finite, not 0.0"),
        ({"scale": False}, "'scale' must be a number, not False"),
        ({"averaging": "median"}, "'averaging' must be one of .*'inverse'.*'median'"),
        ({"pooling": "min"}, "'pooling' must be one of .*'adaptive'.*'min'"),
        ({"drift": 0}, "'drift' must be one of .*'row', 'first'.*0"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(InvalidValueError, match=message):
        SpatiotemporalSmoother(**options)
    with pytest.raises(InvalidValueError, match=f"smoother 'spatiotemporal': {message}"):
        kvpolicy.compose(scorer="restkv", smoother={"name": "spatiotemporal", **options})
