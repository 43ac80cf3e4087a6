"""Hypothesis strategies for tiny models, and for policies that work in them."""

from __future__ import annotations

import functools
import random
from typing import Any

from hypothesis import reject
from hypothesis import strategies as st
from transformers import PreTrainedModel

from kvpolicy import Policy, compose, installed
from kvpolicy import recipe as policy_of
from kvpolicy.errors import KvpolicyError
from kvpolicy.exactness.architectures import tiny_architecture
from kvpolicy.pipeline.capabilities import is_averaging
from kvpolicy.stages.compaction import GatherCompactor
from kvpolicy.testing.models import tiny_model

FAMILIES = ("llama", "llama", "qwen3", "mistral", "gemma2", "gemma3_text")
"""llama is drawn twice as often as the others."""
SHARED = ("gemma3n_text", "gemma4_text")
"""Families whose last layers attend with the keys and values of earlier ones."""
LARGEST_WINDOW = 8
"""Prompts are many times as long."""


@st.composite
def models(draw: st.DrawFn, *, double: bool = False) -> PreTrainedModel:
    """Draw a tiny random model: its family, layers, heads, head size and attention.

    With `double` it is in float64. Rounding is then too small to change a ranking, so two
    computations of the same scores keep the same positions. Eager attention is left out: in float64
    transformers' gives NaN for a padded row.
    """
    known = st.sampled_from(FAMILIES if double else (*FAMILIES, *SHARED))
    family = draw(known.filter(lambda name: not double or name != "gemma2"))
    if family in SHARED:
        shared, backend = draw(st.integers(0, 2)), draw(st.sampled_from(["sdpa", "eager"]))
        return _sharing(family, shared, backend)
    kv_heads, groups = draw(st.integers(1, 3)), draw(st.integers(1, 8))
    heads, head_dim = kv_heads * groups, draw(st.sampled_from([8, 16, 32, 64, 128]))
    # In a model with sliding windows only every other layer evicts.
    windowed = family.startswith("gemma")
    layers = 2 * draw(st.integers(1, 2)) if windowed else draw(st.integers(1, 4))
    sizes: dict[str, Any] = {"query_pre_attn_scalar": head_dim} if windowed else {}
    if family == "gemma3_text":
        sizes["layer_types"] = ["sliding_attention", "full_attention"] * (layers // 2)
    # transformers refuses Gemma 2's soft cap with sdpa.
    backends = ["eager"] if family == "gemma2" else ["sdpa"] if double else ["sdpa", "eager"]
    model = tiny_model(
        family,
        seed=draw(st.integers(0, 3)),
        attn_implementation=draw(st.sampled_from(backends)),
        num_hidden_layers=layers,
        hidden_size=heads * max(1, 32 // heads),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        **sizes,
    )
    return model.double() if double else model


@functools.cache
def _sharing(family: str, shared: int, backend: str) -> PreTrainedModel:
    """Return a model whose last `shared` layers have no keys of their own."""
    return tiny_architecture(family, attn_implementation=backend, num_kv_shared_layers=shared)


@st.composite
def policies(
    draw: st.DrawFn,
    model: PreTrainedModel,
    *,
    exact: bool = True,
    budgets: tuple[int, int] = (8, 48),
) -> Policy:
    """Draw an installed recipe for a model, and change its settings and up to two of its parts.

    With `exact` the replay can measure it: the compactor changes no key and no value, and slots are
    renumbered only in models whose rotation the replay knows.
    """
    recipe = policy_of(draw(st.sampled_from([part.name for part in installed("recipe")])))
    arguments = recipe.to_dict() | draw(_settings(budgets))
    for kind in draw(st.lists(st.sampled_from(["scorer", "smoother", "allocator"]), max_size=2)):
        arguments[kind] = draw(_part(kind, model))
    scorer = arguments["scorer"]
    known = {part.name: part.options for part in installed("scorer")}[scorer["name"]]
    if isinstance(known.get("window"), int):
        arguments["scorer"] = scorer | {"window": draw(st.integers(1, LARGEST_WINDOW))}
    if exact:
        if not (isinstance(recipe.compactor, GatherCompactor) or is_averaging(recipe.compactor)):
            arguments["compactor"] = "gather"
        if "Gemma" in type(model).__name__:
            arguments["slot_positions"] = False
    # Checked shapes draw from `random`, and Hypothesis forbids a strategy to.
    drawn = random.getstate()
    try:
        policy = compose(**arguments)
        with policy.cache(model):
            return policy
    except KvpolicyError:
        reject()
    finally:
        random.setstate(drawn)


def _settings(budgets: tuple[int, int]) -> st.SearchStrategy[dict[str, Any]]:
    """Draw a budget, and some of the other settings of `compose`."""
    return st.fixed_dictionaries(
        {"budget": st.one_of(st.integers(*budgets), st.sampled_from([0.15, 0.4, 0.8]))},
        optional={
            "sinks": st.integers(0, 4),
            "recent": st.one_of(st.none(), st.integers(0, 8), st.sampled_from([0.25, 0.5])),
            "every": st.sampled_from([None, 1, 2, 5, 16]),
            "group": st.sampled_from(["mean", "max", "sum"]),
            "group_order": st.sampled_from(["before", "after"]),
            "layer_group": st.sampled_from([None, "mean", "max"]),
            "per_turn": st.booleans(),
            "slot_positions": st.booleans(),
        },
    )


@st.composite
def _part(draw: st.DrawFn, kind: str, model: PreTrainedModel) -> dict[str, Any]:
    """Draw a part. The oracle is left out, since it needs recorded queries."""
    names = [part.name for part in installed(kind) if part.name != "oracle"]
    name = draw(st.sampled_from(names))
    if name != "headkv":
        return {"name": name}
    config = model.config
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    row = st.lists(
        st.integers(0, 3), min_size=config.num_key_value_heads, max_size=config.num_key_value_heads
    )
    rows = draw(st.tuples(*[row] * kinds.count("full_attention")))
    return {"name": name, "importance": [[1 + each for each in row] for row in rows], "window": 4}
