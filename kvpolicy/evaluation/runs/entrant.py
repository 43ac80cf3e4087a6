"""Who takes part: the full cache, each recipe at each budget, and references."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import attrs

from kvpolicy.budget import Budget, checked_budget, plain, written
from kvpolicy.composition import recipe
from kvpolicy.discovery.registry import find, installed
from kvpolicy.errors import InvalidValueError, KvpolicyError, shown
from kvpolicy.evaluation.runs.identity import code_of
from kvpolicy.policy import Policy
from kvpolicy.task import Metric

FULL = "full"
"""The name of the full cache, the reference of every comparison."""
RANDOM, ORACLE = "random", "oracle"
"""The names of two more references: positions kept by chance, and by knowledge of the future."""

Recipe: TypeAlias = str | Policy | Mapping[str, Any]
"""A recipe's name, a JSON file or the data of `Policy.to_dict`, or a policy."""


@attrs.frozen(kw_only=True)
class Entrant:
    """A policy at one budget under a name, or the full cache, which has neither.

    `refusal` says why there is no such policy: the recipe refused the budget. An oracle has a
    policy for each prompt; see `kvpolicy.evaluation.runs.oracle`.
    """

    name: str
    budget: Budget | None = None
    policy: Policy | None = attrs.field(default=None, repr=False)
    refusal: str | None = None

    @property
    def is_oracle(self) -> bool:
        """Whether it keeps what the future of each prompt needs."""
        return self.name == ORACLE and self.policy is None and self.refusal is None

    def described(self, metric: Metric) -> Mapping[str, Any] | None:
        """Return the policy as plain data; None for the full cache, and for a refusal."""
        if self.is_oracle:
            return {"scorer": {"name": ORACLE}, "recent": 0, "budget": plain(self.budget)}
        policy = suited(self.policy, metric)
        return None if policy is None else policy.to_dict()

    @property
    def code(self) -> str:
        """A digest of the Python code that its runs depend on."""
        return code_of(self.policy, *([find("scorer", ORACLE).offer] if self.is_oracle else []))

    @property
    def title(self) -> str:
        """The name and the budget.

        >>> Entrant(name="snapkv", budget=0.25).title
        'snapkv at 25 %'
        """
        return self.name if self.budget is None else f"{self.name} at {written(self.budget)}"


def suited(policy: Policy | None, metric: Metric) -> Policy | None:
    """Return the policy that takes part: it evicts at each token if these are read one by one."""
    if metric.asks == "stream" and metric.chunk == 1 and policy is not None:
        return attrs.evolve(policy, every=1)
    return policy


def entrants(
    recipes: Iterable[Recipe] | Mapping[str, Recipe],
    budgets: Iterable[Budget],
    *,
    random: bool = False,
    oracle: bool = False,
) -> list[Entrant]:
    """Return the full cache, and every recipe at every budget; a refused budget is marked as such.

    With `random` and `oracle` these references join at every budget.

    A mapping gives the recipes names. A policy, or a file that holds one, has its own budget
    replaced by each of `budgets`; without any budgets it keeps its own.

    >>> [each.title for each in entrants(["snapkv"], [64, 0.5])]
    ['full', 'snapkv at 64', 'snapkv at 50 %']
    >>> print(entrants(["snapkv"], [8])[1].refusal)
    budget 8 is smaller than the 32 positions that are always kept: ...

    Raises InvalidValueError for recipes that are none, for budgets that are none and for two
    recipes of one name, UnknownComponentError for an unknown name.
    """
    checked = list(dict.fromkeys(checked_budget(budget) for budget in budgets))
    found = [Entrant(name=FULL)]
    for name, given in _named(recipes):
        if name == ORACLE:
            raise InvalidValueError(
                f"{name!r} is the name of a reference. Give the recipe another: "
                "{'name': recipe, ...}."
            )
        if any(each.name == name for each in found):
            raise InvalidValueError(
                f"two recipes are called {name!r}. Give them names: {{'name': recipe, ...}}."
            )
        found += _at_budgets(name, given, checked)
    own = dict.fromkeys(each.budget for each in found if each.budget is not None)
    taken = checked or list(own)
    if random and taken and RANDOM not in {each.name for each in found} and _has_random():
        found += _at_budgets(RANDOM, RANDOM, taken)
    if oracle:
        find("scorer", ORACLE)
        found += [Entrant(name=ORACLE, budget=budget) for budget in taken]
    return found


def _has_random() -> bool:
    return any(each.name == RANDOM for each in installed("recipe"))


def read_policy(file: str | Path) -> Policy:
    """Return the policy of a JSON file that holds what `Policy.to_dict` returns.

    Raises InvalidValueError if the file cannot be read or is no such JSON, and what
    `Policy.from_dict` raises.
    """
    try:
        data = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidValueError(
            f"cannot read the policy in {shown(str(file))}: {error}. It must be a JSON file with "
            "what Policy.to_dict() returns."
        ) from error
    if not isinstance(data, dict):
        raise InvalidValueError(
            f"{shown(str(file))} holds no policy but {shown(data)}. It must be a JSON object, as "
            "Policy.to_dict() returns."
        )
    return Policy.from_dict(data)


def _named(
    recipes: Iterable[Recipe] | Mapping[str, Recipe],
) -> Iterator[tuple[str, str | Policy]]:
    if isinstance(recipes, str | Policy):
        recipes = [recipes]
    pairs = recipes.items() if isinstance(recipes, Mapping) else ((None, each) for each in recipes)
    for name, given in pairs:
        if isinstance(given, str) and given.endswith(".json"):
            yield name or Path(given).stem, read_policy(given)
        elif isinstance(given, str):
            yield name or given, given
        elif isinstance(given, Policy):
            yield name or _scorer(given), given
        elif isinstance(given, Mapping):
            policy = Policy.from_dict(given)
            yield name or _scorer(policy), policy
        else:
            raise InvalidValueError(
                "a recipe is a name, a policy, or a JSON file that holds one, not "
                f"{shown(given)}. `kvpolicy list recipe` prints the names."
            )


def _scorer(policy: Policy) -> str:
    return policy.titles["scorer"].name or type(policy.scorer).__name__


def _at_budgets(name: str, given: str | Policy, budgets: Sequence[Budget]) -> Iterator[Entrant]:
    if isinstance(given, str):
        recipe(given)  # an unknown name is an error, a refused budget is a row
    own = [given.budget] if isinstance(given, Policy) else []
    if not budgets and not own:
        raise InvalidValueError(
            f"recipe {name!r} needs a budget, but there is none. Give some, such as 64, 128 or "
            "0.25."
        )
    for budget in budgets or own:
        try:
            policy = (
                recipe(given, budget=budget)
                if isinstance(given, str)
                else attrs.evolve(given, budget=budget)
            )
        except KvpolicyError as error:
            yield Entrant(name=name, budget=budget, refusal=str(error))
        else:
            yield Entrant(name=name, budget=budget, policy=policy)
