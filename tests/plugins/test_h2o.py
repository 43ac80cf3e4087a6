from itertools import pairwise

import attrs
import pytest
import torch
import torch.nn.functional as F

import kvpolicy
from kvpolicy.cache.eviction.one_layer import selected
from kvpolicy.errors import InvalidValueError
from kvpolicy.stages.grouping import reduce_groups
from kvpolicy.testing import contract, observation
from kvpolicy_h2o import HeavyHitterScorer
from kvpolicy_kernels.common.pytorch import logits

test_contract = contract(plugin="h2o")


def prefill_policy(case):
    causal = case.method != "h2o_restkv_noncausal"
    scorer = {"name": "h2o", "causal": causal, "window": case.params["window_size"]}
    return kvpolicy.compose(scorer=scorer, budget=case.params["max_capacity_prompt"])


@pytest.mark.golden("h2o_restkv_noncausal", "h2o_prefill", "h2o_gqa")
def test_scores_of_a_prompt_are_those_of_public_code(case):
    policy, layer = prefill_policy(case), case.observation()
    expected = case.array("scores_before_topk")

    scores = reduce_groups(policy.score(layer), layer.keys.shape[1], policy.group)

    past = scores[..., : layer.length - case.params["window_size"]]
    torch.testing.assert_close(past, expected, rtol=2e-4, atol=0)


@pytest.mark.golden("h2o_restkv_noncausal", "h2o_prefill", "h2o_gqa")
def test_kept_positions_of_a_prompt_are_those_of_public_code(case):
    assert not case.fields["exact_ties_at_cut"]

    kept = selected(prefill_policy(case), case.observation()).indices

    assert torch.equal(kept, case.array("kept_in_emitted_order").long().sort(-1).values)


@pytest.mark.golden("observed_attention")
def test_the_average_is_kvpresss_observed_attention(case):
    policy = kvpolicy.compose(scorer={"name": "h2o", "average": True})
    layer = case.observation()

    scores = reduce_groups(policy.score(layer), layer.keys.shape[1], policy.group)

    torch.testing.assert_close(scores, case.array("scores"), rtol=2e-4, atol=0)


def decoded(policy, case, steps):
    """Read a case's prompt, then token by token; yield the positions held, and the sums."""
    queries, keys, values = (case.tensor(name) for name in "qkv")
    length = keys.shape[2]
    held = kvpolicy.Observation(
        queries=queries, keys=keys[:, :, :0], values=values[:, :, :0], scaling=1.0
    )
    for start, stop in pairwise([0, *range(length - steps, length + 1)]):
        new = torch.arange(start, stop).expand(*keys.shape[:2], -1)
        layer = kvpolicy.Observation(
            queries=queries[:, :, start:stop],
            keys=torch.cat([held.keys, keys[:, :, start:stop]], 2),
            values=torch.cat([held.values, values[:, :, start:stop]], 2),
            positions=torch.cat([held.positions, new], -1),
            seen=stop,
            state=None if held.state is None else F.pad(held.state, (0, stop - start)),
        )
        layer = attrs.evolve(layer, state=policy.accumulate(layer))
        selection = selected(policy, layer)
        smaller = policy.compact(layer.keys, layer.values, selection, layer)
        positions, state = (
            rows.gather(-1, selection.indices) for rows in (layer.positions, layer.state)
        )
        held = attrs.evolve(
            layer, keys=smaller[0], values=smaller[1], positions=positions, state=state
        )
        yield positions, state


@pytest.mark.golden("h2o_decode")
def test_every_step_keeps_what_the_authors_code_keeps(case):
    sizes = case.array("kept_len_by_step").tolist()
    heavy, recent = case.params["hh_size"], case.params["recent_size"]
    policy = kvpolicy.recipe("h2o", budget=heavy + recent)
    assert policy.recent_of(policy.budget) == recent

    steps = list(decoded(policy, case, steps=len(sizes) - 1))

    kept = torch.cat([positions.flatten() for positions, _ in steps])
    assert [positions.shape[-1] for positions, _ in steps] == sizes
    assert torch.equal(kept, case.array("kept_flat_by_step_then_head").long())
    expected = case.array("final_accumulated_scores")
    torch.testing.assert_close(steps[-1][1][0], expected, rtol=2e-4, atol=0)


def attention_of(layer, causal):
    """The attention of all queries in double precision, [B, H, W, S]."""
    groups = layer.queries.shape[1] // layer.keys.shape[1]
    keys = layer.keys.double().repeat_interleave(groups, 1)
    logits = layer.queries.double() @ keys.mT * layer.scaling
    if layer.softcap is not None:
        logits = layer.softcap * torch.tanh(logits / layer.softcap)
    return logits.masked_fill(~causal, -torch.inf).softmax(-1)


def causal_mask(length):
    return torch.ones(length, length, dtype=torch.bool).tril()


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_a_prompts_sums_are_those_of_the_whole_attention_matrix(softcap):
    layer = observation(positions=40, window=40, batch=2, softcap=softcap)
    expected = attention_of(layer, causal_mask(40)).sum(2)
    sums = HeavyHitterScorer().accumulate(layer)
    torch.testing.assert_close(sums.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [1, 8, 40, 64])
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_without_causality_only_the_window_is_masked(window, rows, monkeypatch):
    monkeypatch.setattr(logits, "LOGITS_BYTES", rows * 40 * 4)
    layer = observation(positions=40, window=40, batch=2)
    mask = causal_mask(40)
    mask[: max(0, 40 - window)] = True
    expected = attention_of(layer, mask).sum(2)
    sums = HeavyHitterScorer(causal=False, window=window).accumulate(layer)
    torch.testing.assert_close(sums.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_forward_adds_to_what_there_was():
    layer = observation(positions=20, window=3)
    before = torch.rand(1, 4, 20)
    scorer = HeavyHitterScorer()
    expected = before + layer.attention.sum(2)
    sums = scorer.accumulate(attrs.evolve(layer, state=before))
    torch.testing.assert_close(sums, expected)


def test_the_average_counts_the_tokens_since_a_position_evicted_ones_too():
    positions = torch.tensor([0, 5, 9]).expand(1, 2, -1)
    layer = observation(positions=3, window=1, groups=1, seen=10, state=torch.ones(1, 2, 3))
    layer = attrs.evolve(layer, positions=positions)
    scores = HeavyHitterScorer(average=True).score(layer, lambda rows: rows.mean(-2))
    torch.testing.assert_close(scores, torch.tensor([1 / 10, 1 / 5, 1.0]).expand(1, 2, -1))


def test_value_weights_are_the_values_absolute_sums():
    layer = observation(positions=20, window=20)
    plain, weighted = (
        HeavyHitterScorer(value_weighted=weighted).score(layer, lambda rows: rows.mean(-2))
        for weighted in (False, True)
    )
    norms = layer.values.norm(p=1, dim=-1)
    for head in range(4):
        torch.testing.assert_close(weighted[:, head], plain[:, head] * norms[:, head // 2])


def test_the_recipe_keeps_half_of_its_budget_for_recent_tokens():
    policy = kvpolicy.recipe("h2o", budget=21)
    kept = selected(policy, observation(positions=100, window=100)).indices
    assert kept.shape[-1] == 21
    assert torch.equal(kept[..., -10:], torch.arange(90, 100).expand(1, 2, -1))


def test_a_scorer_that_needs_the_whole_prompt_does_not_evict_while_decoding():
    scorer = {"name": "h2o", "causal": False}
    with pytest.raises(InvalidValueError, match="every=1 evicts while decoding"):
        kvpolicy.recipe("h2o", scorer=scorer)
    assert kvpolicy.recipe("h2o", scorer=scorer, every=None).scorer.prefill_only


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "'window' must be at least 1, not 0"),
        ({"causal": 1}, "'causal' must be True or False, not 1"),
        ({"average": "yes"}, "'average' must be True or False, not 'yes'"),
        ({"value_weighted": None}, "'value_weighted' must be True or False, not None"),
        ({"average": True, "causal": False}, "average=True counts causal queries"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(InvalidValueError, match=f"scorer 'h2o': {message}"):
        kvpolicy.compose(scorer={"name": "h2o", **options})
