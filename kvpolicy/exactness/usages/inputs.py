"""Small prompts and policies, and the steps that usages have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from kvpolicy import Policy
from kvpolicy import recipe as policy_of
from kvpolicy.exactness.forwards import recorded
from kvpolicy.exactness.replay import max_logit_difference
from kvpolicy.huggingface.cache import PolicyCache
from kvpolicy.huggingface.cache_argument import handed

Usage: TypeAlias = Callable[[PreTrainedModel, Policy], float]
PROMPT = 60
"""The tokens of a prompt."""
NEW_TOKENS = 8
"""How many tokens are decoded."""


def tokens(seed: int, length: int = PROMPT, batch: int = 1) -> Int[Tensor, "B T"]:
    """Return random tokens; none is a special one."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, 128, (batch, length), generator=generator)


def small_policy(recipe: str, **changes: Any) -> Policy:
    """Return a recipe with a budget of 24 and a window of at most 8, for prompts of 60 tokens.

    >>> small_policy("snapkv", sinks=2).scorer.window
    8
    """
    scorer = policy_of(recipe).to_dict()["scorer"]
    if isinstance(scorer.get("window"), int):
        scorer["window"] = min(scorer["window"], 8)
    return policy_of(recipe, **{"scorer": scorer, "budget": 24} | changes)


def changed(policy: Policy, **changes: Any) -> Policy:
    """Return a policy with other parts or settings."""
    return attrs.evolve(policy, **changes)


def padded(lengths: Sequence[int]) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Return a left-padded batch of prompts with these lengths, and its mask."""
    mask = (torch.arange(PROMPT) >= PROMPT - torch.tensor(lengths)[:, None]).long()
    return tokens(4, batch=len(lengths)) * mask, mask


def replayed(model: PreTrainedModel, policy: Policy, use: Callable[[PolicyCache], Any]) -> float:
    """Use a cache, and return the largest difference to the masked full cache."""
    cache = policy.cache(model)
    with recorded(model, cache) as forwards:
        use(cache)
    return max_logit_difference(model, forwards, cache)


def read(model: Any, cache: Any, turns: Sequence[int], *, first_seed: int = 0) -> list[Tensor]:
    """Read turns with these numbers of tokens, a forward each; return the logits of each."""
    return [
        model(input_ids=tokens(first_seed + turn, length), **handed(cache, to=model)).logits
        for turn, length in enumerate(turns)
    ]


def generate(model: Any, cache: PolicyCache | None, ids: Int[Tensor, "B T"], **options: Any) -> Any:
    """Decode some tokens with `generate`, greedily unless `options` say otherwise.

    Returns the text, ids [rows, longer], or what `generate` returns in its place.
    """
    defaults = {
        "attention_mask": torch.ones_like(ids),
        "max_new_tokens": NEW_TOKENS,
        "do_sample": False,
        "pad_token_id": 0,
    }
    return model.generate(ids, **handed(cache, to=model.generate), **defaults | options)


def largest(differences: Sequence[Float[Tensor, ...]]) -> float:
    """Return the largest absolute value; NaN if there is one."""
    return float(torch.stack([each.abs().max() for each in differences]).max())


def difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest absolute difference of tensors in pairs; NaN if there is one."""
    return largest([a - b for a, b in zip(found, expected, strict=True)])
