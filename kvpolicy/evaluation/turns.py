"""Which facts of the first turn a policy still recalls after later turns, on the needle model.

    python -m kvpolicy.evaluation.turns

A text with facts is read in turns. Each turn ends with a question about one of its own facts, which
the model answers. After each turn every fact of the first turn is asked for, on a copy of the
cache. A line is a recipe and how its budget is shared out over turns.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from itertools import pairwise
from random import Random
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache

from kvpolicy import Policy, recipe
from kvpolicy.evaluation.needle.loading import load
from kvpolicy.evaluation.needle.prompts import (
    CODE_LENGTH,
    Document,
    Fact,
    question,
    write_document,
)
from kvpolicy.huggingface.cache_argument import handed

TURNS, TOKENS, FACTS = 6, 200, 12
"""How many turns there are, and about how many tokens and facts each has."""
BUDGET = 64
"""Positions for each head and layer."""


def retention(model: Any, tokenizer: Any, policy: Policy | None, *, seed: int = 0) -> list[float]:
    """Return the share of the first turn's facts that is recalled after each turn.

    None reads with the full cache.
    """
    document = write_document(
        Random(f"dialogue {seed}"), tokens=TURNS * TOKENS, facts=TURNS * FACTS
    )
    turns = turns_of(document)
    cache = DynamicCache(config=model.config) if policy is None else policy.cache(model)
    shares = []
    for words, facts in turns:
        asked = facts[-1]
        _say(model, cache, _ids(tokenizer, [*words, *question(asked.name)]))
        recalled = [_recalls(model, tokenizer, cache, fact) for fact in turns[0][1]]
        shares.append(sum(recalled) / len(recalled))
    return shares


def turns_of(document: Document) -> list[tuple[list[str], list[Fact]]]:
    """Split a text into turns of equally many facts; a turn ends where the next one's facts begin.

    >>> document = write_document(Random(0), tokens=TURNS * TOKENS, facts=TURNS * FACTS)
    >>> [len(facts) for _, facts in turns_of(document)]
    [12, 12, 12, 12, 12, 12]
    """
    found, words = [], ["<s>", *document.words]
    starts = [0, *(fact.positions.start for fact in document.facts[FACTS::FACTS]), len(words)]
    for turn, (start, stop) in enumerate(pairwise(starts)):
        facts = list(document.facts[turn * FACTS : (turn + 1) * FACTS])
        found.append((words[start:stop], facts))
    return found


@torch.no_grad()
def _say(model: Any, cache: Any, ids: list[int]) -> list[int]:
    """Read a turn, and decode as many tokens as a code has."""
    said: list[int] = []
    new: Int[Tensor, "1 Q"] = torch.tensor([ids], device=model.device)
    for _ in range(CODE_LENGTH):
        new = model(new, **handed(cache, to=model)).logits[:, -1:].argmax(-1)
        said.append(int(new))
    return said


def _recalls(model: Any, tokenizer: Any, cache: Any, fact: Fact) -> bool:
    said = _say(model, deepcopy(cache), _ids(tokenizer, question(fact.name)))
    return said == _ids(tokenizer, fact.code)


def _ids(tokenizer: Any, words: Iterable[str]) -> list[int]:
    found: list[int] = tokenizer.convert_tokens_to_ids(list(words))
    return found


def main() -> None:
    """Print a table."""
    model, tokenizer = load()
    print(f"{'recipe':>22} " + " ".join(f"turn {turn + 1:>2}" for turn in range(TURNS)))
    for name, policy in _policies():
        shares = " ".join(f"{share:>7.0%}" for share in retention(model, tokenizer, policy))
        print(f"{name:>22} {shares}")


def _policies() -> list[tuple[str, Policy | None]]:
    """Return what is compared: a budget for each turn, and two for all turns together."""
    found: list[tuple[str, Policy | None]] = [("full cache", None)]
    for name in ("restkv", "snapkv"):
        for per_turn, budget in ((True, BUDGET), (False, BUDGET), (False, TURNS * BUDGET)):
            title = f"{name} {budget} {'per turn' if per_turn else 'together'}"
            found.append((title, recipe(name, budget=budget, per_turn=per_turn)))
    return found


if __name__ == "__main__":
    main()
