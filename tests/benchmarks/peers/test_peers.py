"""The peers keep what the originals keep."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import kvpolicy
from benchmarks.evictions import kept_positions
from benchmarks.peers import authors_restkv, kvpress_snapkv

GOLDEN = Path(__file__).parents[2] / "plugins" / "golden"
ARRAYS = np.load(GOLDEN / "golden.npz")
PUBLISHED = {"use_wo": True, "use_ema": True, "pooling": "adaptive", "tau": 1.0}


def published_cases():
    """The authors' runs in the published mode, of one sequence with a budget for each head."""
    for case in json.loads((GOLDEN / "cases.json").read_text())["cases"]:
        params = case["params"]
        if (
            case["method"] == "restkv"
            and params["metric_mode"] == "after"
            and PUBLISHED.items() <= params.items()
            and not params["use_pyramid"]
            and ARRAYS[f"input/{case['input']}/q"].shape[0] == 1
            and f"{case['id']}/scores_before_topk" in ARRAYS
        ):
            yield case


CASES = list(published_cases())


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_the_authors_algorithm_keeps_the_authors_positions_in_their_order(case):
    params = case["params"]
    queries, keys, values, weight = (
        torch.from_numpy(ARRAYS[f"input/{case['input']}/{name}"]).float()
        for name in ("q", "k", "v", "wo")
    )
    window = params["window_size"]

    kept = authors_restkv.past_positions(
        queries[:, :, -window:],
        keys,
        values,
        weight,
        budget=params["max_capacity_prompt"],
        settings=authors_restkv.Settings(
            alpha=params["alpha"], width=params["kernel_size"], scale=params["scale"]
        ),
    )

    expected = torch.from_numpy(ARRAYS[f"{case['id']}/kept_in_emitted_order"]).long()
    assert torch.equal(kept, expected[..., :-window])


def test_there_are_runs_of_the_authors_to_compare_with():
    assert len(CASES) >= 5


def layer(dtype=torch.float32):
    draw = torch.Generator().manual_seed(0)
    queries = torch.randn(1, 8, 16, 32, generator=draw) * 3
    keys, values = torch.randn(2, 1, 2, 300, 32, generator=draw)
    weight = torch.randn(256, 256, generator=draw) / 16
    return tuple(each.to(dtype) for each in (queries, keys, values, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_authors_algorithm_returns_the_rows_of_its_positions_and_the_window(dtype):
    queries, keys, values, weight = layer(dtype)
    keys, values = (each.repeat_interleave(4, dim=1) for each in (keys, values))

    kept_keys, kept_values = authors_restkv.evict(queries, keys, values, weight, budget=40)

    past = authors_restkv.past_positions(queries, keys, values, weight, budget=40)
    rows = torch.cat([past, torch.arange(284, 300).expand(1, 8, 16)], dim=-1)
    assert torch.equal(kept_keys, keys.gather(2, rows[..., None].expand(-1, -1, -1, 32)))
    assert torch.equal(kept_values, values.gather(2, rows[..., None].expand(-1, -1, -1, 32)))


def test_kvpress_snapkv_keeps_what_the_snapkv_recipe_keeps():
    queries, keys, values, _ = layer()
    policy = kvpolicy.recipe("snapkv", budget=40, scorer={"name": "snapkv", "window": 16})
    observation = kvpolicy.Observation(queries=queries, keys=keys, values=values)
    ours = kept_positions(policy, observation)

    best = kvpress_snapkv.scored(queries, keys).topk(40, dim=-1).indices
    kept_keys, kept_values = kvpress_snapkv.evict(queries, keys, values, budget=40)

    assert torch.equal(best.sort(-1).values, ours)
    rows = best[..., None].expand(-1, -1, -1, 32)
    assert torch.equal(kept_keys, keys.gather(2, rows))
    assert torch.equal(kept_values, values.gather(2, rows))
