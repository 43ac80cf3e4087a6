"""The arguments of one attention call, beside queries, keys, values and mask."""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.observation.logits import Logits

_OWN_ATTENTION = "Attention over uneven heads and sparse prefill do"
_ALTERNATIVE = "Use an allocator that treats heads alike and prefill=None."
_GATHERED = "Use compactor='gather' and prefill=None."


POSITION_BIAS = "position_bias"
"""The argument by which transformers' attention functions take a bias for queries and keys."""


class Call(NamedTuple):
    """The attention module that calls, and what it gives its attention function by keyword."""

    module: nn.Module
    kwargs: dict[str, Any]
    shows_bias: bool = False
    """Whether a position bias is one by distance, which policies are shown."""

    def logits(self, query: Float[Tensor, "B H Q D"]) -> Logits:
        """Return how this call makes logits of queries and keys.

        Raises UnsupportedModelError for attention that policies cannot be shown.
        """
        scaling, softcap, sinks = self.settings(query)
        return Logits(scaling=scaling, softcap=softcap, sinks=sinks)

    def settings(self, query: Float[Tensor, "B H Q D"]) -> tuple[float, float | None, Any]:
        """Return what `logits` does as a plain tuple, which compiled code can make.

        Raises what `logits` raises.
        """
        self._refuse_what_is_not_shown()
        scaling = self.kwargs.get("scaling")
        scaling = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
        return scaling, self.kwargs.get("softcap"), self._learned_sinks(query)

    def _learned_sinks(self, query: Float[Tensor, "B H Q D"]) -> Float[Tensor, " H"] | None:
        for name in ("s_aux", "sinks"):
            sinks = self.kwargs.get(name)
            if sinks is None:
                continue
            if tuple(sinks.shape) != (query.shape[1],):
                raise UnsupportedModelError(
                    f"{self._name} gives its attention {name!r} of {tuple(sinks.shape)}. A learned "
                    f"sink for each of the {query.shape[1]} query heads was expected."
                )
            found: Tensor = sinks.detach()
            return found
        return None

    def refuse_what_is_not_computed(self, biased: str | None = None) -> None:
        """Refuse what a layer's own attention does not compute: dropout and attention weights.

        `biased` says what attention adds a bias for; None if it adds none.
        """
        attention, alternative = _OWN_ATTENTION, _ALTERNATIVE
        if biased is not None:
            attention, alternative = f"Attention over {biased} does", _GATHERED
        if self.kwargs.get("dropout"):
            raise UnsupportedModelError(
                f"{self._name} uses attention dropout. {attention} not support it. Call "
                f"model.eval(). Or: {alternative}"
            )
        config = getattr(self.module, "config", None)
        if self.kwargs.get("output_attentions") or getattr(config, "output_attentions", False):
            raise UnsupportedModelError(
                f"{self._name} returns its attention weights (output_attentions=True). "
                f"{attention} not compute them. {alternative}"
            )

    def _refuse_what_is_not_shown(self) -> None:
        """Refuse attention that is not a causal softmax of scaled, capped products."""
        if self.kwargs.get("is_causal", getattr(self.module, "is_causal", True)) is False:
            raise UnsupportedModelError(
                f"{self._name} is not causal: tokens that are read later change what earlier "
                "tokens give, also those that were evicted. An encoder needs is_decoder=True to "
                "generate."
            )
        known = (POSITION_BIAS,) if self.shows_bias else ()
        for extra in (POSITION_BIAS, "indices", "block_indices"):
            if extra not in known and self.kwargs.get(extra) is not None:
                raise UnsupportedModelError(
                    f"{self._name} gives its attention {extra!r}. Policies are not shown it, so "
                    "their scores would be wrong."
                )

    @property
    def _name(self) -> str:
        return type(self.module).__name__
