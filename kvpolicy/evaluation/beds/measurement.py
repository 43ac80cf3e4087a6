"""The errors of one policy on a bed, and its answers."""

from __future__ import annotations

import attrs
import torch

from kvpolicy.errors import KvpolicyError
from kvpolicy.evaluation.beds.answers import Answered, answered
from kvpolicy.evaluation.beds.bed import Bed
from kvpolicy.evaluation.beds.entrants import ENTRANTS
from kvpolicy.evaluation.measures.reconstruction import token_errors


@attrs.frozen(kw_only=True)
class Measured:
    """The errors of one policy on the prompts of a bed.

    `answers` are those of each portion of the prompts, if they were asked for. Without errors,
    `refusal` says why there is no policy of this budget.
    """

    bed: str
    name: str
    budget: int
    errors: tuple[float, ...]
    answers: tuple[Answered, ...] = ()
    refusal: str | None = None


@torch.no_grad()
def measured(bed: Bed, name: str, budget: int, *, answers: bool = False) -> Measured:
    """Measure one entrant at one budget on all prompts of a bed.

    With `answers`, raises KvpolicyError if the policy holds more positions than its budget.
    """
    row = Measured(bed=bed.name, name=name, budget=budget, errors=())
    try:
        policies = [ENTRANTS[name](each, budget) for each in bed.recordings]
    except KvpolicyError as error:
        return attrs.evolve(row, refusal=str(error))
    asked = list(zip(policies, bed.recordings, bed.readers, strict=True))
    if answers:
        found = tuple(answered(policy, each, reader, bed.answer) for policy, each, reader in asked)
        errors = tuple(error for each in found for error in each.errors)
        return attrs.evolve(row, errors=errors, answers=found)
    means = [
        token_errors(bed.model, policy, each, reader=reader).mean((0, 2))
        for policy, each, reader in asked
    ]
    return attrs.evolve(row, errors=tuple(torch.cat(means).tolist()))
