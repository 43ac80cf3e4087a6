"""Checks of what is compared with others. No speed is told of what fails its check."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

import torch

import kvpolicy
from benchmarks.bench import Bench, Cell, S
from benchmarks.evictions import kept_positions
from benchmarks.peers import authors_restkv, kvpress_snapkv
from kvpolicy import Observation, Policy
from kvpolicy.exactness.limits import LIMIT
from kvpolicy.exactness.usages import one_prompt, small_policy
from kvpolicy.huggingface.attention.grouped import grouped_attention
from kvpolicy.stages.grouping import reduce_groups
from kvpolicy.testing.models import tiny_model

HEADS, KV_HEADS, DIM, POSITIONS, BUDGET = 8, 2, 32, 300, 40


def layer(window: int) -> Observation:
    """Return a small layer whose attention is far from uniform."""
    draw = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, 1, KV_HEADS, POSITIONS, DIM, generator=draw)
    return Observation(
        queries=torch.randn(1, HEADS, window, DIM, generator=draw) * 3,
        keys=keys,
        values=values,
        output_weight=torch.randn(256, HEADS * DIM, generator=draw) / 16,
        budget=BUDGET,
    )


def restkv_keeps_what_the_authors_keep() -> None:
    """Both keep the same positions if each query head has its own key/value head."""
    policy = kvpolicy.recipe("restkv", budget=BUDGET)
    shown = layer(policy.scorer.window or 0)
    alone = Observation(
        queries=shown.queries,
        keys=shown.keys.repeat_interleave(HEADS // KV_HEADS, dim=1),
        values=shown.values.repeat_interleave(HEADS // KV_HEADS, dim=1),
        output_weight=shown.output_weight,
        budget=BUDGET,
    )
    assert alone.output_weight is not None
    past = authors_restkv.past_positions(
        alone.queries, alone.keys, alone.values, alone.output_weight, budget=BUDGET
    )
    kept = kept_positions(policy, alone)[..., : BUDGET - shown.window]
    assert torch.equal(kept, past.sort(-1).values), "restkv keeps other positions than the authors"
    _groups_are_averaged(policy, shown, alone)


def _groups_are_averaged(policy: Policy, shown: Observation, alone: Observation) -> None:
    """Query heads of a group are scored as if each had its own key/value head, then averaged."""
    separate = reduce_groups(policy.score(alone), KV_HEADS, "mean")
    together = reduce_groups(policy.score(shown), KV_HEADS, "mean")
    torch.testing.assert_close(together, separate, rtol=1e-4, atol=1e-6)


def snapkv_keeps_what_kvpress_keeps() -> None:
    """Both keep the same positions of every key/value head."""
    window = 16
    shown = layer(window)
    policy = kvpolicy.recipe("snapkv", scorer={"name": "snapkv", "window": window}, budget=BUDGET)
    best = kvpress_snapkv.scored(shown.queries, shown.keys).topk(BUDGET).indices
    kept = kept_positions(policy, shown)
    assert torch.equal(kept, best.sort(-1).values), "snapkv keeps other positions than kvpress"


def decoding_is_exact(recipe: str) -> None:
    """Logits are those of a full cache whose evicted entries are masked."""
    model = tiny_model("llama", num_hidden_layers=4)
    difference = one_prompt(model, small_policy(recipe))
    assert difference <= LIMIT, f"{recipe}: logits differ by {difference}"


def grouped_attention_is_attention() -> None:
    """Attention that reads the query heads of a group as rows is the softmax of each query head."""
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(1, HEADS, 1, DIM, generator=draw, dtype=torch.float64)
    shape = (2, 1, KV_HEADS, POSITIONS, DIM)
    keys, values = torch.randn(shape, generator=draw, dtype=torch.float64)
    output = grouped_attention(query, keys, values, 0.3)
    for head in range(HEADS):
        of_group = head // (HEADS // KV_HEADS)
        weights = (0.3 * query[0, head] @ keys[0, of_group].T).softmax(-1)
        torch.testing.assert_close(output[0, :, head], weights @ values[0, of_group])


DECODED = ("snapkv", "restkv", "adakv", "h2o", "tova", "streamingllm", "lacache")
"""Recipes whose decoding is checked."""
CHECKS: Mapping[str, Callable[[], None]] = {
    "restkv": restkv_keeps_what_the_authors_keep,
    "snapkv": snapkv_keeps_what_kvpress_keeps,
    "grouped attention": grouped_attention_is_attention,
    **{f"decoding with {recipe}": partial(decoding_is_exact, recipe) for recipe in DECODED},
}


def cells(names: Iterable[str] = CHECKS) -> Iterator[Cell[S]]:
    """Check each of these."""
    for name in names:
        yield Cell(key=f"checks/{name}", measure=partial(note_check, name=name))


def note_check(bench: Bench[S], name: str) -> None:
    """Run a check, and note whether it passed, with the reason if it did not."""
    reason = reason_against(CHECKS[name])
    bench.note("checks", name, reason is None, "bool", note=reason or "")


def reason_against(check: Callable[[], None]) -> str | None:
    """Return why a check fails; None if it passes."""
    try:
        check()
    except Exception as error:  # noqa: BLE001 - whatever was raised, the check has failed
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None
