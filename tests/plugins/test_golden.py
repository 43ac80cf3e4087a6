"""What the authors' own code of ReST-KV, SnapKV and StreamingLLM keeps.

Other methods have such tests beside their own. Inputs and settings are those in golden/.
"""

import re
from pathlib import Path

import attrs
import pytest
import torch

import kvpolicy
from kvpolicy.cache.eviction.one_layer import selected
from kvpolicy_kernels import adaptive_pooling
from kvpolicy_restkv.drift import attention_drift

POOLING = {"adaptive": "adaptive", "avgpool": "avg", "maxpool": "max", "none": "none"}
AVERAGING = {"ema": "ema", "mean": "mean", "none": "none", "inv-ema": "inverse"}


@attrs.frozen(kw_only=True)
class FixedAllocator:
    """What the authors' pyramid gives to the layer of a case."""

    count: int

    def allocate(self, scores, observation, budget):
        return torch.full(scores.shape[:2], self.count)


def restkv(params):
    scorer = {
        "window": params["window_size"],
        "projection": "output" if params["use_wo"] else "value",
    }
    if params["metric_mode"] == "after":
        assert not params["use_norm"]
        scorer |= {"name": "restkv", "tau": params["tau"]}
    else:
        assert params["tau"] == 1.0
        scorer |= {"name": "windowedrestkv", "normalize": params["use_norm"]}
    return {
        "scorer": scorer,
        "smoother": {
            "name": "spatiotemporal",
            "averaging": "ema" if params["use_ema"] else "mean",
            "alpha": params["alpha"],
            "pooling": POOLING[params["pooling"]],
            "width": params["kernel_size"],
            "scale": params["scale"],
            "drift": "first",
        },
    }


def restkv_ablation(params):
    if params["indicator"] == "attn":
        # The authors' code always averages and pools this one, whatever `ts` and `ss` say.
        return snapkv(params | {"kernel_size": 5, "pooling": "avgpool"})
    return {
        "scorer": {"name": "restkv", "window": params["window_size"]},
        "smoother": {
            "name": "spatiotemporal",
            "averaging": AVERAGING[params["ts"]],
            "pooling": POOLING[params["ss"]],
        },
    }


def snapkv(params):
    return {
        "scorer": {"name": "snapkv", "window": params["window_size"]},
        "smoother": {
            "name": "pooling",
            "pooling": POOLING[params["pooling"]],
            "width": params["kernel_size"],
        },
        "group": params.get("gqa_score_agg") or params.get("gqa_func") or "mean",
    }


def streamingllm_prefill(params):
    window, budget = params["window_size"], params["max_capacity_prompt"]
    return {"scorer": "streamingllm", "sinks": budget - window, "recent": window}


PARTS = {
    "restkv": restkv,
    "restkv_ablation": restkv_ablation,
    "snapkv": snapkv,
    "snapkv_gqa": snapkv,
    "streamingllm_prefill": streamingllm_prefill,
}


def policy_of(case):
    params = case.params
    parts = PARTS[case.method](params)
    if params.get("use_pyramid"):
        count = case.fields["n_selected_from_past"] + params["window_size"]
        parts["allocator"] = FixedAllocator(count=count)
    return kvpolicy.compose(**parts, budget=params["max_capacity_prompt"])


def observation_of(case):
    params = case.params
    return case.observation(window=params["window_size"], budget=params["max_capacity_prompt"])


def summed_over_the_window(case):
    """Whether the code adds up the window where kvpolicy averages: W times our scores."""
    snapkv = case.method in ("snapkv", "snapkv_gqa") and "AdaKV" not in case.fields["source"]
    return snapkv or case.params.get("indicator") == "attn"


@pytest.mark.golden(
    "restkv",
    "restkv_ablation",
    "snapkv",
    "snapkv_gqa",
    "streamingllm_prefill",
    array="scores_before_topk",
)
def test_scores_are_the_authors(case):
    policy, observation = policy_of(case), observation_of(case)
    expected = case.array("scores_before_topk")

    scores = policy.group_scores(observation)
    past = scores[..., : observation.length - observation.window]
    if summed_over_the_window(case):
        past = past * observation.window

    torch.testing.assert_close(past, expected, rtol=2e-4, atol=0)


@pytest.mark.golden("restkv", "restkv_ablation", "snapkv", "snapkv_gqa", "streamingllm_prefill")
def test_kept_positions_are_the_authors(case):
    assert not case.fields.get("exact_ties_at_cut"), (
        "compare the scores that are kept, not the positions"
    )

    selection = selected(policy_of(case), observation_of(case))

    expected = case.array("kept_in_emitted_order").long().sort(-1).values
    assert torch.equal(selection.indices, expected)
    assert (selection.lengths == expected.shape[-1]).all()


@pytest.mark.golden("snapkv_gqa", array="scores_before_topk")
def test_a_mean_and_a_sum_are_the_authors_in_either_order(case):
    observation, expected = observation_of(case), case.array("scores_before_topk")
    for order in ("before", "after"):
        policy = attrs.evolve(policy_of(case), group_order=order)
        past = policy.group_scores(observation)[..., : observation.length - observation.window]
        if summed_over_the_window(case):
            past = past * observation.window
        torch.testing.assert_close(past, expected, rtol=2e-4, atol=0)


@pytest.mark.golden("snapkv_gqa")
@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_a_maximum_is_taken_before_pooling_unless_after_is_asked_for(case, pooling):
    """As `SnapKVCluster` of AdaKV and KVCache-Factory do: the group's maximum, then the pooling."""
    observation, window = observation_of(case), case.params["window_size"]
    width = case.params["kernel_size"]
    policy = kvpolicy.compose(
        scorer={"name": "snapkv", "window": window},
        smoother={"name": "pooling", "pooling": pooling, "width": width},
        group="max",
        budget=case.params["max_capacity_prompt"],
    )
    assert policy.group_order == "before"
    past = observation.attention.mean(-2)[..., : observation.length - window]
    heads = past.unflatten(1, (observation.keys.shape[1], -1))
    pool = {"avg": torch.nn.functional.avg_pool1d, "max": torch.nn.functional.max_pool1d}[pooling]
    before = pool(heads.amax(2), width, 1, width // 2)
    after = pool(heads.flatten(1, 2), width, 1, width // 2).view_as(heads).amax(2)
    for order, expected in (("before", before), ("after", after)):
        scores = attrs.evolve(policy, group_order=order).group_scores(observation)
        torch.testing.assert_close(scores[..., : past.shape[-1]], expected, rtol=2e-4, atol=1e-9)
    # A maximum of maxima is the same in either order; averages differ.
    assert torch.allclose(before, after, rtol=1e-3) is (pooling == "max")


@pytest.mark.golden("restkv", array="t_shift")
def test_drift_widths_and_shifts_are_the_authors(case):
    smoother = policy_of(case).smoother

    drift = attention_drift(observation_of(case))
    widths, shifts = adaptive_pooling(drift, width=smoother.width, scale=smoother.scale)

    torch.testing.assert_close(drift[0].float(), case.array("t_shift"), rtol=1e-5, atol=1e-5)
    left, right = case.array("pad_left_right").long().unbind(-1)
    assert widths[0].tolist() == case.fields["kernel_per_head"] == (left + right + 1).tolist()
    assert shifts[0].tolist() == case.fields["shift_per_head"] == ((right - left) // 2).tolist()


@pytest.mark.golden("streamingllm")
def test_streaming_keeps_the_original_slots(case):
    params = case.params
    held = torch.zeros(1, 1, params["seq_len"], 8)
    # To make room for new tokens is to have so much less budget.
    budget = params["start_size"] + params["recent_size"] - (params["num_coming"] or 0)
    policy = kvpolicy.recipe("streamingllm", sinks=params["start_size"], budget=budget)

    selection = selected(
        policy, kvpolicy.Observation(queries=held[:, :, -1:], keys=held, values=held)
    )

    assert selection.indices[0, 0].tolist() == case.array("kept").tolist()


def test_every_method_with_golden_cases_is_compared(golden_methods):
    marked = set()
    for file in Path(__file__).parent.glob("test_*.py"):
        for marker in re.findall(r"pytest\.mark\.golden\(([^)]*)\)", file.read_text()):
            marked |= set(re.findall(r'"(\w+)"', marker))

    assert golden_methods <= marked, f"not compared: {sorted(golden_methods - marked)}"
