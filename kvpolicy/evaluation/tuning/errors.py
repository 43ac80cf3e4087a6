"""The reconstruction error of policies on prompts whose future was recorded once."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

import attrs
import torch
from jaxtyping import Int
from torch import Tensor

from kvpolicy.evaluation.caches import opened_cache
from kvpolicy.evaluation.measures.reconstruction import Recording, record, token_errors
from kvpolicy.evaluation.runs.prompt import Prompt, PromptFormat
from kvpolicy.evaluation.runs.reading import Reading, ends_of
from kvpolicy.task import Sample

if TYPE_CHECKING:
    from kvpolicy.policy import Policy


@attrs.frozen(kw_only=True, eq=False)
class Recorded:
    """Prompts of a model, and what the full cache does after them."""

    model: Any
    recordings: Sequence[Recording]

    def error(self, policy: Policy) -> float:
        """Return the mean error over prompts, layers and the tokens that follow.

        Raises what `policy.cache` and the parts of the policy raise.
        """
        found = [token_errors(self.model, policy, each) for each in self.recordings]
        return fmean(value for each in found for value in each.mean((0, 2)).tolist())


def recorded(
    model: Any, tokenizer: Any, form: PromptFormat, samples: Sequence[Sample], longest: int
) -> Recorded:
    """Record what follows each prompt: its question, if asked outside, and the full cache's text.

    Prompts that are equally long, and whose text is, are read together.
    """
    alike: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
    for sample in samples:
        prompt = form.prompt(sample)
        follows = _follows(model, tokenizer, prompt, sample.max_new_tokens or longest)
        shape = prompt.context.shape[1], follows.shape[1]
        alike.setdefault(shape, []).append((prompt.context, follows))
    recordings = []
    for pairs in alike.values():
        contexts, continuations = (
            torch.cat(each).to(model.device) for each in zip(*pairs, strict=True)
        )
        recordings.append(record(model, contexts, continuations))
    return Recorded(model=model, recordings=recordings)


def _follows(model: Any, tokenizer: Any, prompt: Prompt, limit: int) -> Int[Tensor, "1 F"]:
    ends = ends_of(model, tokenizer)
    with torch.inference_mode(), opened_cache(model, None) as cache:
        written, _ = Reading(model, cache).follow(prompt, None, limit=limit, ends=ends)
    return torch.cat([prompt.question, torch.tensor([written])], dim=1)
