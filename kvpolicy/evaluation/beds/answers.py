"""Whether a model that holds what a policy kept says the words that follow a prompt."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING, Any

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.errors import InvalidValueError, KvpolicyError
from kvpolicy.evaluation.caches import copied_cache, opened_cache
from kvpolicy.evaluation.measures.reconstruction import Recording, errors_of_continuation
from kvpolicy.evaluation.recording.read_once import ReadOnce, next_logits

if TYPE_CHECKING:
    from transformers import Cache

    from kvpolicy.policy import Policy

ROUNDING = 1e-6
"""How much the mean number of positions may be above the budget."""


@attrs.frozen(kw_only=True)
class Answered:
    """What a policy did with the prompts of a recording.

    `errors` are those of each prompt, the mean over layers and tokens. `right` says whether its
    answer is. `held` is the mean number of positions of a head, over layers and heads, when the
    prompt is read; `nbytes` are the bytes that the cache then takes for a prompt. The full cache
    has errors of 0, and the two numbers are not counted for it: 0.
    """

    errors: tuple[float, ...]
    right: tuple[bool, ...]
    held: float = 0.0
    nbytes: float = 0.0

    @property
    def share(self) -> float:
        """The share of prompts whose answer is right."""
        return fmean(self.right)


@torch.no_grad()
def answered(policy: Policy | None, recording: Recording, reader: ReadOnce, words: int) -> Answered:
    """Read a recording's prompt and continuation with a policy; None is the full cache.

    `reader` has the model.

    The last `words` tokens of the continuation are its answer. It is right if greedy decoding says
    it: at each of its tokens, behind those before it, the model finds the next one likeliest.

    Raises InvalidValueError if there is no answer, and KvpolicyError if more positions are held
    than the budget, on average over layers and heads.
    """
    from kvpolicy.huggingface.cache import PolicyCache

    if words < 1:
        raise InvalidValueError(
            "the prompts ask for no answer, so none can be right. Leave --answers out, or give the "
            "folder of a needle model."
        )
    model, count = reader.model, len(recording.prompt)
    with opened_cache(model, policy) as cache:
        first = reader.read(cache, recording.prompt).argmax(-1)
        with copied_cache(cache) as twin:
            right = _right(model, recording, twin, first, words)
        if policy is None or not isinstance(cache, PolicyCache):
            return Answered(errors=(0.0,) * count, right=right)
        held, nbytes = _held(cache, policy), cache.nbytes / count
        errors: Float[Tensor, " B"] = errors_of_continuation(model, cache, recording).mean((0, 2))
    return Answered(errors=tuple(errors.tolist()), right=right, held=held, nbytes=nbytes)


def _right(
    model: Any, recording: Recording, cache: Cache, first: Int[Tensor, " B"], words: int
) -> tuple[bool, ...]:
    read = recording.continuation[:, :-1].split(1, dim=1)
    said = torch.stack(
        [first, *(next_logits(model, cache, token).argmax(-1) for token in read)], dim=1
    )
    found = said == recording.continuation
    return tuple(found[:, found.shape[1] - words :].all(1).tolist())


def _held(cache: Any, policy: Policy) -> float:
    # Not the slots that are allocated: with uneven heads each prompt has those of the longest one.
    held = fmean(float((each >= 0).sum(-1).double().mean()) for each in cache.positions)
    if isinstance(policy.budget, int) and held > policy.budget + ROUNDING:
        raise KvpolicyError(
            f"{policy!r} holds {held:.2f} positions of a head on average, more than its budget of "
            f"{policy.budget}. It cannot be compared with others at this budget."
        )
    return held
