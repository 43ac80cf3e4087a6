"""Assisted decoding: where the prompt ends, and which tokens of a forward are drafts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import attrs
from jaxtyping import Float
from torch import Tensor

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.pipeline.capabilities import needs_of
from kvpolicy.pipeline.pipeline import Pipeline

FEATURE = "Assisted decoding and prompt look-up"
UNKNOWN_END = (
    f"{FEATURE} need to know where the prompt ends. Make the cache before the call, cache = "
    "policy.cache(model), and then call model.generate with token ids and that cache. A cache that "
    "is made among the arguments comes too late: generate was looked up before."
)
SETTINGS = ("assistant_model", "prompt_lookup_num_tokens")
"""The arguments of `generate` by which tokens are drafted."""
REFUSED_SETTINGS = ("assistant_early_exit", "use_mtp")
"""Those that draft with layers of the model itself, in ways that a cache cannot follow."""


@attrs.define
class Drafts:
    """Says for each forward how many of its tokens belong to the prompt.

    `end` counts the tokens up to the end of the prompt; None: all tokens of a forward belong to it.
    Tokens behind the end are drafts. They are read as decoded tokens are, so that they can be taken
    back.

    >>> drafts = Drafts(end=60)
    >>> drafts.of_prompt(0, 65), drafts.of_prompt(60, 5), Drafts().of_prompt(60, 5)
    (60, 0, 5)
    """

    end: int | None = None

    def of_prompt(self, seen: int, count: int) -> int:
        """Return how many of `count` tokens behind `seen` others belong to the prompt."""
        return count if self.end is None else min(count, max(0, self.end - seen))

    def check_end(self) -> None:
        """Raise UnsupportedModelError if nobody has said where the prompt ends."""
        if self.end is None:
            raise UnsupportedModelError(UNKNOWN_END)


@attrs.frozen(eq=False)
class Rest:
    """The drafts of a forward that begins with the end of a prompt.

    `read` adds them to their layer, once it has evicted, and returns what attention is given then.
    """

    keys: Float[Tensor, "B N C D"]
    values: Float[Tensor, "B N C Dv"]
    add: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = attrs.field(repr=False)

    @property
    def count(self) -> int:
        """C, the number of drafted tokens."""
        return self.keys.shape[2]

    def read(self) -> tuple[Float[Tensor, "B N S D"], Float[Tensor, "B N S Dv"]]:
        """Add the drafts to the layer; return all of its keys, marked, and its values."""
        return self.add(self.keys, self.values)


class New(NamedTuple):
    """The new rows that are added to a layer now, the drafts behind them, and whether all are."""

    keys: Float[Tensor, "B N Q D"]
    values: Float[Tensor, "B N Q Dv"]
    rest: Rest | None
    are_drafts: bool


def parted(
    drafts: Drafts,
    seen: int,
    keys: Float[Tensor, "B N Q D"],
    values: Float[Tensor, "B N Q Dv"],
    add: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
) -> New:
    """Part the new rows of a layer that has seen `seen` tokens where the prompt ends."""
    prompt = drafts.of_prompt(seen, keys.shape[2])
    if prompt in (0, keys.shape[2]):
        return New(keys, values, None, are_drafts=prompt == 0)
    rest = Rest(keys[:, :, prompt:], values[:, :, prompt:], add)
    return New(keys[:, :, :prompt], values[:, :, :prompt], rest, are_drafts=False)


def check_drafts(session: Any) -> None:
    """Raise UnsupportedModelError if drafts that are not accepted would leave something behind.

    `session` is that of a cache.
    """
    policy: Pipeline = session.policy
    if policy.every is not None:
        raise UnsupportedModelError(
            f"{FEATURE} take drafted tokens back, but every={policy.every} evicts while decoding, "
            "and an eviction cannot be undone. Use every=None, or generate without drafts."
        )
    if policy.running_scorer is not None:
        raise UnsupportedModelError(
            f"{FEATURE} take drafted tokens back, but {policy.titles['scorer']} has learned from "
            "them. Use a scorer without running state, such as 'snapkv', or generate without "
            "drafts."
        )
    _check_parting(session, policy)


def _check_parting(session: Any, policy: Pipeline) -> None:
    """Raise UnsupportedModelError unless each layer can evict between the prompt and the drafts."""
    read = f"{FEATURE} read the end of the prompt and drafts in one forward."
    if policy.model_allocator is not None:
        raise UnsupportedModelError(
            f"{read} Each layer must evict between them, but {policy.titles['allocator']} compares "
            "all layers first. Use another allocator, such as 'uniform', or generate without "
            "drafts."
        )
    if any(len(readers) > 1 for readers in session.readers):
        raise UnsupportedModelError(
            f"{read} Each layer must evict between them, but layers of this model read the keys of "
            "others, which must stay until then. Generate without drafts."
        )
    if policy.slot_positions or any("rotary" in needs_of(part) for part in policy.parts.values()):
        raise UnsupportedModelError(
            f"{read} Their rotary positions are not followed apart, and this policy computes with "
            "them. Use slot_positions=False and another scorer, such as 'snapkv', or generate "
            "without drafts."
        )
