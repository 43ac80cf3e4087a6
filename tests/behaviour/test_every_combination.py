"""Every scorer with every smoother, allocator, selector and compactor: it works, or is refused.

What is refused is refused by `compose`, with a reason, before any work is done.
"""

import pytest
import torch

import kvpolicy
from kvpolicy.discovery.registry import installed
from kvpolicy.errors import InvalidValueError
from kvpolicy.exactness.usages import tokens
from kvpolicy.pipeline.capabilities import across_heads, is_uneven
from kvpolicy.testing.models import tiny_model

PROMPT, BUDGET, WINDOW = 36, 20, 4
TABLE = [[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]]
NEEDED = {"headkv": {"importance": TABLE}, "skiplayers": {"layers": [0]}}
"""What allocators cannot be built without, or need for a model of two layers."""
FITTING = {"lacache": {"span": 1}}
"""What scorers need for it."""
KINDS = ("scorer", "smoother", "allocator", "selector", "compactor")
ORACLES = {"oracle", "oracle_single"}
"""They know the future of one prompt, in tensors; their own tests compose them."""
NAMES = {kind: sorted({part.name for part in installed(kind)} - ORACLES) for kind in KINDS}
MODEL = tiny_model("llama")


def part(kind, name):
    options = NEEDED.get(name, {}) if kind == "allocator" else {}
    options |= FITTING.get(name, {}) if kind == "scorer" else {}
    known = next(each for each in installed(kind) if each.name == name).options
    if kind == "scorer" and isinstance(known.get("window"), int):
        options |= {"window": min(known["window"], WINDOW)}
    return {"name": name, **options}


def composed(scorer, smoother, allocator, selector, compactor, **settings):
    names = (scorer, smoother, allocator, selector, compactor)
    parts = {kind: part(kind, name) for kind, name in zip(KINDS, names, strict=True)}
    return kvpolicy.compose(**parts, budget=BUDGET, recent=WINDOW, **settings)


def cannot(policy_parts):
    """Why the parts, built one by one, do not go together; None if they do."""
    built = [
        next(each for each in installed(kind) if each.name == given["name"]).build(
            **{key: value for key, value in given.items() if key != "name"}
        )
        for kind, given in policy_parts.items()
    ]
    if policy_parts["allocator"]["name"] == "lacache" != policy_parts["scorer"]["name"]:
        return "Use scorer='lacache'"
    uneven = is_uneven(built[2]) and any(across_heads(each) for each in built)
    return "all heads of a layer" if uneven else None


# Every pair of a scorer and an allocator is in the sample, and so is every other pair.
@pytest.mark.sampled(31, "scorer", "allocator", "compactor", "smoother")
@pytest.mark.parametrize("smoother", NAMES["smoother"])
@pytest.mark.parametrize("compactor", NAMES["compactor"])
@pytest.mark.parametrize("allocator", NAMES["allocator"])
@pytest.mark.parametrize("scorer", NAMES["scorer"])
def test_every_combination_works_or_is_refused(scorer, smoother, allocator, compactor):
    for selector in NAMES["selector"]:
        names = (scorer, smoother, allocator, selector, compactor)
        parts = {kind: part(kind, name) for kind, name in zip(KINDS, names, strict=True)}
        if reason := cannot(parts):
            assert allocator != "uniform"
            with pytest.raises(InvalidValueError, match=reason):
                composed(*names)
            continue
        _use(composed(*names))


@torch.no_grad()
def _use(policy):
    """Read a prompt, decode a token, and read a second turn; every time within the budget."""
    with policy.cache(MODEL) as cache:
        for seed, length in ((0, PROMPT), (1, 1), (2, 6)):
            logits = MODEL(input_ids=tokens(seed, length), past_key_values=cache).logits
            assert logits.isfinite().all()
            held = [(layer >= 0).sum(-1).double().mean() for layer in cache.positions]
            assert float(torch.stack(held).mean()) <= BUDGET + (length == 1)


@pytest.mark.parametrize("scorer", NAMES["scorer"])
def test_every_scorer_evicts_while_decoding_or_is_refused(scorer):
    built = kvpolicy.compose(scorer=part("scorer", scorer), budget=BUDGET, recent=WINDOW).scorer
    settings = {"scorer": part("scorer", scorer), "budget": BUDGET, "recent": WINDOW, "every": 2}
    if getattr(built, "prefill_only", False):
        with pytest.raises(InvalidValueError, match="every=2"):
            kvpolicy.compose(**settings)
        return
    with torch.no_grad(), kvpolicy.compose(**settings).cache(MODEL) as cache:
        MODEL(input_ids=tokens(0, PROMPT), past_key_values=cache)
        for step in range(6):
            MODEL(input_ids=tokens(step, 1), past_key_values=cache)
        assert all(layer.mean_held <= BUDGET for layer in cache.policy_layers)
