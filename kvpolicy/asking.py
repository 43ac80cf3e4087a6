"""What scorers have in common that show queries of their choice to another scorer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import attrs
from jaxtyping import Float
from torch import Tensor

from kvpolicy.errors import InvalidValueError, shown
from kvpolicy.named import Named, resolved
from kvpolicy.observation.fold import Reduce
from kvpolicy.observation.observation import Observation
from kvpolicy.pipeline.capabilities import (
    ChecksModel,
    ModelFacts,
    across_heads,
    counts_budget,
    is_replayable,
    needs_of,
)
from kvpolicy.pipeline.checks import at_work, checked_scores
from kvpolicy.pipeline.title import Title
from kvpolicy.stages.scoring import Scorer


def own_copy(given: Any) -> Any:
    """Copy a mapping, which its owner may change, for use as a converter."""
    return dict(given) if isinstance(given, Mapping) else given


def askable(instance: object, option: attrs.Attribute[Any], value: Any) -> None:
    """Accept the name of a scorer that can be asked, or a mapping with it, as a validator."""
    name = value.get("name") if isinstance(value, Mapping) else value
    if not isinstance(name, str):
        raise InvalidValueError(
            f"{option.name!r} must be the name of a scorer, or a mapping with a 'name', but is "
            f"{shown(value)}."
        )
    part, title = resolved("scorer", value)
    if not is_replayable(part):
        raise InvalidValueError(
            f"{option.name!r} must be a scorer that can be shown replayed queries, but {title} "
            "does not say `replayable`. Use 'snapkv', 'restkv', 'jointrestkv' or 'windowedrestkv'."
        )


@attrs.frozen(kw_only=True)
class AskingScorer:
    """A base of scorers that turn queries and ask another scorer with them.

    `scorer` is the other one: a name or a mapping of name and options. It must say `replayable`.
    A class that derives from this one gives it a default, has a `window` and a `score`, and calls
    `ask`. What the other scorer declares, it declares too.

    >>> AskingScorer(scorer={"name": "snapkv", "window": 4}).asked
    AttentionScorer(window=4)
    """

    scorer: str | Mapping[str, Any] = attrs.field(
        converter=own_copy,
        validator=askable,
        hash=False,  # A mapping has no hash.
    )

    @cached_property
    def asked(self) -> Scorer:
        """The other scorer."""
        scorer: Scorer = self._named.part
        return scorer

    @cached_property
    def _named(self) -> Named:
        return resolved("scorer", self.scorer)

    @property
    def asked_title(self) -> Title:
        """The title of the other scorer."""
        return self._named.title

    @property
    def needs(self) -> tuple[str, ...]:
        """What the model must show: its rotary embedding, and what the other scorer needs."""
        return ("rotary", *needs_of(self.asked))

    @property
    def across_heads(self) -> bool:
        """Whether the other scorer needs all heads to hold the same positions."""
        return across_heads(self.asked)

    @property
    def counts_budget(self) -> bool:
        """Whether the other scorer computes with the budget."""
        return counts_budget(self.asked)

    def check_model(self, model: ModelFacts) -> None:
        """Raise what the other scorer raises for this model."""
        if isinstance(self.asked, ChecksModel):
            self.asked.check_model(model)

    def ask(self, observation: Observation, reduce: Reduce) -> Float[Tensor, "B H S"]:
        """Return the other scorer's scores. Errors name that scorer and its plugin.

        Raises InvalidComponentError if they are not finite float32 of shape (B, H, S).
        """
        title = self._named.title
        with at_work(title, observation):
            scores = self.asked.score(observation, reduce)
        return checked_scores(title, scores, observation)
