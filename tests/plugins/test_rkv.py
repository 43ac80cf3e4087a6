import attrs
import pytest
import torch
import torch.nn.functional as F

import kvpolicy
from kvpolicy.cache.eviction.one_layer import selected
from kvpolicy.errors import InvalidValueError
from kvpolicy.stages.grouping import reduce_groups
from kvpolicy.stages.smoothing import MeanSmoother, fold_of
from kvpolicy.testing import contract, observation
from kvpolicy_kernels.similar_keys import reference
from kvpolicy_rkv import RedundancyScorer, redundancy

test_contract = contract(plugin="rkv")

mean = fold_of(MeanSmoother())


def policy_of(params):
    scorer = {
        "name": "rkv",
        "window": params["window_size"],
        "mix": params["mix_lambda"],
        "width": params["kernel_size"],
        "retain": params["retain_direction"],
    }
    return kvpolicy.compose(scorer=scorer, budget=params["budget"])


@pytest.mark.golden("rkv")
def test_scores_are_the_authors(case):
    policy = policy_of(case.params)
    layer = case.observation(window=policy.scorer.window)
    expected = case.array("scores_before_topk")

    scores = reduce_groups(policy.score(layer), layer.keys.shape[1], policy.group)

    torch.testing.assert_close(scores[..., : expected.shape[-1]], expected, rtol=2e-4, atol=0)


@pytest.mark.golden("rkv")
def test_kept_positions_are_the_authors(case):
    assert not case.fields["exact_ties_at_cut"]
    policy = policy_of(case.params)

    kept = selected(policy, case.observation(window=policy.scorer.window)).indices

    assert torch.equal(kept, case.array("kept_in_emitted_order").long().sort(-1).values)


def expected_scores(layer, scorer):
    """The formula in double precision, with whole matrices and loops over rows."""
    groups = layer.queries.shape[1] // layer.keys.shape[1]
    keys = layer.keys.double()
    past = layer.length - layer.window
    logits = layer.queries.double() @ keys[:, :, :past].repeat_interleave(groups, 1).mT
    logits = logits * layer.scaling
    if layer.softcap is not None:
        logits = layer.softcap * torch.tanh(logits / layer.softcap)
    attention = logits.unflatten(1, (-1, groups)).amax(2).softmax(-1).mean(2)
    importance = F.max_pool1d(attention, scorer.width, 1, scorer.width // 2)
    cosines = F.cosine_similarity(keys[:, :, :, None], keys[:, :, None], dim=-1)
    for matrix in cosines.flatten(0, 1):
        matrix.fill_diagonal_(0)
        for row in matrix:
            similar = (row > scorer.threshold).nonzero()[:, 0].tolist()
            if scorer.retain != "none":
                row[0 if not similar else similar[-1 if scorer.retain == "last" else 0]] = 0
    repeated = cosines.mean(2).softmax(-1)
    return scorer.mix * F.pad(importance, (0, layer.window)) - (1 - scorer.mix) * repeated


@pytest.mark.parametrize("retain", ["last", "first", "none"])
@pytest.mark.parametrize("rows", [1, 7, 1000])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_scores_are_the_formula_in_blocks_of_any_size(retain, rows, softcap, monkeypatch):
    monkeypatch.setattr(redundancy, "rows_per_block", lambda floats, device: rows)
    monkeypatch.setattr(reference, "rows_per_block", lambda floats, device: rows)
    monkeypatch.setattr(reference, "SIDE", rows)
    layer = observation(positions=40, batch=2, dim=4, softcap=softcap)
    scorer = RedundancyScorer(mix=0.6, width=3, retain=retain, threshold=0.7)

    scores = scorer.score(layer, mean)

    expected = expected_scores(layer, scorer).repeat_interleave(2, 1)
    torch.testing.assert_close(scores.double(), expected, rtol=1e-5, atol=1e-7)


def test_a_gpu_sums_the_same_cosines_without_a_copy():
    keys = observation(positions=40, batch=2, dim=4).keys.clone()
    keys[:, :, 3] = 0
    summed = redundancy._summed_cosines(keys)
    torch.testing.assert_close(
        redundancy._summed_cosines_at_once(keys), summed, rtol=1e-5, atol=1e-5
    )


def test_the_window_is_folded_by_the_smoother():
    layer = observation(positions=40)
    scorer = RedundancyScorer(mix=1.0, width=1)
    newest = attrs.evolve(layer, queries=layer.queries[:, :, -1:])
    scores = scorer.score(layer, lambda rows: rows[..., -1, :])
    # The newest query alone, which must not see the rest of the window either.
    past = layer.length - layer.window
    expected = scorer.score(
        attrs.evolve(
            newest,
            keys=torch.cat([layer.keys[:, :, :past], layer.keys[:, :, -1:]], 2),
            values=torch.cat([layer.values[:, :, :past], layer.values[:, :, -1:]], 2),
            positions=layer.positions[:, :, : past + 1],
        ),
        mean,
    )
    torch.testing.assert_close(scores[..., :past], expected[..., :past])
    assert (scores[..., past:] == 0).all()


@pytest.mark.parametrize(("retain", "worst_first"), [("last", [1, 3, 6]), ("first", [6, 3, 1])])
def test_of_three_equal_keys_the_last_or_the_first_is_the_least_redundant(retain, worst_first):
    keys = torch.eye(9)
    keys[3] = keys[6] = keys[1]
    keys = keys[None, None]
    layer = kvpolicy.Observation(queries=torch.zeros(1, 1, 1, 9), keys=keys, values=keys)
    scores = RedundancyScorer(mix=0.0, retain=retain).score(layer, mean)[0, 0]
    assert (scores[worst_first].diff() > 0).all()
    assert (scores[worst_first[:2]] < scores[[2, 4, 5, 7, 8]].min()).all()


def test_a_key_that_repeats_goes_before_one_that_is_attended_to_less():
    keys = torch.eye(9)
    keys[2:5] = keys[1]
    query = keys[1] + 0.9 * keys[5]
    layer = kvpolicy.Observation(
        queries=query[None, None, None], keys=keys[None, None], values=keys[None, None]
    )
    scores = RedundancyScorer(width=1).score(layer, mean)[0, 0]
    attention = RedundancyScorer(width=1, mix=1.0).score(layer, mean)[0, 0]
    assert attention[1] > attention[5]
    assert scores[1] < scores[5]


def test_a_prompt_that_is_all_window_is_judged_by_redundancy_alone():
    layer = observation(positions=5)
    scores = RedundancyScorer(mix=0.5).score(layer, mean)
    expected = -0.5 * redundancy.redundancy(layer.keys, threshold=0.5, retain="last")
    torch.testing.assert_close(scores, expected.repeat_interleave(2, 1))


def test_the_recipe_judges_every_128_tokens_by_its_last_eight():
    policy = kvpolicy.recipe("rkv", budget=40)
    assert (policy.every, policy.scorer.window, policy.recent, policy.scorer.mix) == (
        128,
        8,
        8,
        0.1,
    )
    kept = selected(policy, observation(positions=100)).indices
    assert torch.equal(kept[..., -8:], torch.arange(92, 100).expand(1, 2, -1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "'window' must be at least 1, not 0"),
        ({"mix": 1.5}, r"'mix' must be in \[0, 1\], not 1.5"),
        ({"mix": "x"}, "'mix' must be a number, not 'x'"),
        ({"width": 4}, "'width' must be odd"),
        ({"threshold": -0.5}, r"'threshold' must be in \[0, 1\], not -0.5"),
        ({"retain": "lats"}, "'retain' must be one of .* Did you mean 'last'?"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(InvalidValueError, match=f"scorer 'rkv': {message}"):
        kvpolicy.compose(scorer={"name": "rkv", **options})
