"""What a `PolicyCache` gives for the prompt and the answer of a request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.evaluation.serving.engine import BLOCK, Served
from kvpolicy.huggingface.cache_argument import handed
from kvpolicy.policy import Policy
from kvpolicy.vllm.rounding import Rounding


@attrs.frozen(kw_only=True, eq=False)
class Expected:
    """The positions that each layer keeps, and the log probabilities of every answered token."""

    kept: Sequence[Int[Tensor, "N K"]]
    logprobs: Float[Tensor, "T V"]


@torch.no_grad()
def expected(model: Any, policy: Policy, prompt: Sequence[int], answer: Sequence[int]) -> Expected:
    """Read the prompt at once, then the answer token by token."""
    budget = Rounding.of(policy).kept(len(prompt), block=BLOCK)
    # A prompt shorter than the budget is kept whole, whatever the budget.
    rounded = policy if budget == len(prompt) else attrs.evolve(policy, budget=budget)
    with rounded.cache(model) as cache:
        read = torch.tensor([list(prompt)])
        logits = [model(read, **handed(cache, to=model)).logits[0, -1]]
        kept = [each[0].long() for each in cache.positions]
        for token in answer[:-1]:
            one = torch.tensor([[token]])
            logits.append(model(one, **handed(cache, to=model)).logits[0, -1])
    return Expected(kept=kept, logprobs=torch.stack(logits).float().log_softmax(-1))


@attrs.frozen(kw_only=True)
class Comparison:
    """How a request compares: `same_positions` and `same_tokens`, and the largest difference.

    `difference` is that of the log probabilities of the answered tokens. `moved` says how far the
    policy took these from those of the full cache; `evicted` counts the positions that went.
    """

    same_positions: bool
    same_tokens: bool
    difference: float
    moved: float
    evicted: int


def compared(model: Any, policy: Policy, served: Served) -> Comparison:
    """Compare what an engine gave with the cache, and the cache with a full one."""
    answer = torch.tensor(served.tokens)
    want = expected(model, policy, served.prompt, served.tokens)
    whole = attrs.evolve(policy, budget=max(policy.protected, len(served.prompt)))
    full = expected(model, whole, served.prompt, served.tokens)
    own, others = (each.logprobs.gather(1, answer[:, None])[:, 0] for each in (want, full))
    said = torch.tensor(served.logprobs)
    return Comparison(
        same_positions=_same(served, want),
        same_tokens=bool((want.logprobs.argmax(-1) == answer).all()),
        difference=float((own - said).abs().max()),
        moved=float((own - others).abs().max()),
        evicted=len(served.prompt) - want.kept[0].shape[-1],
    )


def _same(served: Served, want: Expected) -> bool:
    """Whether the engine kept the same positions each time that it read the prompt."""
    if not served.kept:
        return want.kept[0].shape[-1] == len(served.prompt)
    return all(
        torch.equal(time[layer].long(), kept)
        for time in served.kept
        for layer, kept in enumerate(want.kept)
    )
