"""The entrants of the comparison of fidelity: recipes, variants of ReST-KV, chance, two oracles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from kvpolicy import Policy, compose, recipe
from kvpolicy.errors import KvpolicyError
from kvpolicy.evaluation.fidelity.measurement import Entrant
from kvpolicy.evaluation.measures.reconstruction import Recording
from kvpolicy.evaluation.reports.comparison import Refusal

WORST, BEST, SINGLE = "random", "oracle", "oracle_single"
DRAWS = 8
"""How many times chance is drawn. A single draw may happen to keep an attention sink everywhere."""

JOINT, WITH_WINDOW = {"name": "jointrestkv"}, {"o_includes_window": True}
UNPOOLED = {"name": "spatiotemporal", "pooling": "none"}
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "restkv, joint": {"scorer": JOINT},
    "restkv, o with window": {"scorer": {"name": "restkv", **WITH_WINDOW}},
    "restkv, joint, o with window": {"scorer": JOINT | WITH_WINDOW},
    "restkv, unpooled": {"smoother": UNPOOLED},
    "restkv, joint, unpooled": {"scorer": JOINT, "smoother": UNPOOLED},
    "restkv, kvcompose": {"allocator": "kvcompose"},
    "restkv, grkv": {"compactor": "grkv"},
}
"""Changes of recipe `restkv`, by the title of the variant."""
PAIRS = (
    ("restkv, joint", "restkv"),
    ("restkv, joint, o with window", "restkv, o with window"),
    ("restkv, joint, unpooled", "restkv, unpooled"),
    ("restkv, o with window", "restkv"),
    ("replay", "restkv"),
    ("restkv, kvcompose", "restkv"),
    ("restkv, grkv", "restkv"),
    ("lava", "adakv"),
)
"""Entrants that are compared prompt by prompt."""


def entrants(recipes: Sequence[str], budgets: Sequence[int]) -> tuple[list[Entrant], list[Refusal]]:
    """Return all entrants, budget by budget, and a refusal for each that refuses a budget."""
    accepted, refused = [], []
    for budget in sorted(set(budgets)):
        for title, name, changes in _settings(recipes):
            try:
                policies = [recipe(name, budget=budget, **each) for each in changes]
            except KvpolicyError as error:
                refused.append(Refusal(name=title, budget=budget, reason=str(error)))
            else:
                same = partial(_same, policies)
                accepted.append(Entrant(name=title, budget=budget, policies=same))
        for name in (BEST, SINGLE):
            oracle = partial(_oracle, name, budget)
            accepted.append(Entrant(name=name, budget=budget, policies=oracle))
    return accepted, refused


def _settings(
    recipes: Sequence[str],
) -> Iterator[tuple[str, str, Sequence[Mapping[str, Any]]]]:
    """Yield title, recipe and changes of each entrant; several changes are draws of chance."""
    yield WORST, WORST, [{"scorer": {"name": WORST, "seed": seed}} for seed in range(DRAWS)]
    for name in sorted(set(recipes) - {WORST}):
        yield name, name, [{}]
    if "restkv" in recipes:
        for title, changes in VARIANTS.items():
            yield title, "restkv", [changes]


def _same(policies: Sequence[Policy], recording: Recording) -> Sequence[Policy]:
    return policies


def _oracle(name: str, budget: int, recording: Recording) -> Sequence[Policy]:
    return [compose(scorer={"name": name, "future": recording}, recent=0, budget=budget)]
