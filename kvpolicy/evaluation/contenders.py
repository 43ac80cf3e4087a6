"""Who takes part in a comparison: the full cache, and recipes at the budgets they accept."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import attrs

from kvpolicy.compose import recipe
from kvpolicy.errors import KvpolicyError
from kvpolicy.evaluation.results import Refusal

if TYPE_CHECKING:
    from kvpolicy.policy import Policy

FULL = "full cache"


@attrs.frozen(kw_only=True)
class Contender:
    """A recipe at one budget, or the full cache, which has neither budget nor policy."""

    name: str
    budget: int | None = None
    policy: Policy | None = attrs.field(default=None, repr=False)

    def refusal(self, error: KvpolicyError) -> Refusal:
        """Say why it cannot take part."""
        return Refusal(name=self.name, budget=self.budget, reason=str(error))


def contenders(
    recipes: Iterable[str], budgets: Iterable[int]
) -> tuple[list[Contender], list[Refusal]]:
    """Return the full cache and every recipe at every budget, and the recipes that refuse one.

    >>> accepted, refused = contenders(["restkv"], [16, 64])
    >>> [(each.name, each.budget) for each in accepted]
    [('full cache', None), ('restkv', 64)]
    >>> refused[0].budget
    16
    """
    budgets = sorted(set(budgets))
    accepted, refused = [Contender(name=FULL)], []
    for name in recipes:
        for budget in budgets:
            contender = Contender(name=name, budget=budget)
            try:
                policy = recipe(name, budget=budget)
            except KvpolicyError as error:
                refused.append(contender.refusal(error))
            else:
                accepted.append(attrs.evolve(contender, policy=policy))
    return accepted, refused
