"""What every recipe promises in a model that generates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from kvpolicy.composition import compose
from kvpolicy.huggingface.cache_argument import handed
from kvpolicy.policy import Policy
from kvpolicy.testing.models import tiny_model
from kvpolicy.testing.promises.promise import Draw, promise

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Recipe = Mapping[str, Any]
NEW = 5


@promise("recipe", examples=1)
def generates_within_the_budget(recipe: Recipe, draw: Draw) -> None:
    """After a long prompt the cache holds the budget and what was decoded since."""
    policy, model = _small(recipe), tiny_model("llama")
    prompt = _prompt(2 * policy.positions(0) + 16)
    with policy.cache(model) as cache:
        _generate(model, prompt, cache)
        held = torch.stack([(layer >= 0).sum(-1).double().mean() for layer in cache.positions])
        # The last token was chosen, but never read.
        decoded = NEW - 1
        assert cache.get_seq_length() == prompt.shape[1] + decoded
        assert held.mean() <= policy.positions(prompt.shape[1]) + decoded


@promise("recipe", examples=1)
def keeps_two_conversations_apart(recipe: Recipe, draw: Draw) -> None:
    """Two caches used in turn on one model each give what they would alone."""
    policy, model = _small(recipe), tiny_model("llama")
    length = policy.positions(0) + 16
    chunks = [[_prompt(length, seed), _prompt(3, seed + 1)] for seed in (0, 10)]
    alone = [_read_all(model, policy, each) for each in chunks]
    with policy.cache(model) as first, policy.cache(model) as second:
        turns = [
            [_read(model, turn[0], first), _read(model, turn[1], second)]
            for turn in zip(*chunks, strict=True)
        ]
    for mine, together in zip(alone, zip(*turns, strict=True), strict=True):
        for expected, got in zip(mine, together, strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


@promise("recipe", examples=1)
def reads_a_padded_row_as_if_alone(recipe: Recipe, draw: Draw) -> None:
    """A prompt that is left-padded in a batch generates what it would alone."""
    policy, model = _small(recipe), tiny_model("llama")
    long, short = policy.positions(0) + 24, policy.positions(0) + 7
    prompt = _prompt(long, rows=2)
    mask = torch.ones_like(prompt)
    mask[1, : long - short] = 0
    with policy.cache(model) as cache:
        batch = _generate(model, prompt * mask, cache, attention_mask=mask)
    for row, length in enumerate((long, short)):
        with policy.cache(model) as cache:
            alone = _generate(model, prompt[row : row + 1, long - length :], cache)
        torch.testing.assert_close(batch[:, row], alone[:, 0], rtol=0, atol=1e-4)


def _small(recipe: Recipe) -> Policy:
    """Return the recipe's policy with room for few positions beyond the protected ones."""
    policy = compose(**dict(recipe) | {"budget": 1.0})
    return compose(**dict(recipe) | {"budget": policy.protected + (policy.scorer.window or 0) + 12})


def _prompt(length: int, seed: int = 0, rows: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 128, (rows, length), generator=generator)


def _generate(model: PreTrainedModel, prompt: Tensor, cache: Any, **inputs: Tensor) -> Tensor:
    """Generate greedily and return the logits of each step and row."""
    # transformers types `generate` on a mixin that PreTrainedModel does not inherit.
    output = cast("Any", model).generate(
        prompt,
        **handed(cache, to=cast("Any", model).generate),
        max_new_tokens=NEW,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        **{"attention_mask": torch.ones_like(prompt)} | inputs,
    )
    return torch.stack(output.logits)


@torch.no_grad()
def _read(model: PreTrainedModel, tokens: Tensor, cache: Any) -> Tensor:
    """Return the logits of the last of `tokens`, read after what the cache has seen."""
    logits: Tensor = model(tokens, **handed(cache, to=model)).logits[:, -1]
    return logits


def _read_all(model: PreTrainedModel, policy: Policy, chunks: list[Tensor]) -> list[Tensor]:
    with policy.cache(model) as cache:
        return [_read(model, tokens, cache) for tokens in chunks]
