"""What an attention call shows of a layer, beyond keys and values."""

from __future__ import annotations

import attrs
from jaxtyping import Float
from torch import Tensor

from kvpolicy.cache.eviction.spans import BatchSpans
from kvpolicy.cache.eviction.views import View
from kvpolicy.observation.logits import Logits
from kvpolicy.observation.observation import Observation
from kvpolicy.observation.rotary import DisplacedRotary, Rotary
from kvpolicy.observation.shard import Shard
from kvpolicy.pipeline.pipeline import Pipeline


@attrs.frozen(kw_only=True, eq=False)
class Shown:
    """The last queries of a layer, and how the model computes with them.

    `layer` counts the layers that evict. `output_weight` is None where it cannot be read, and
    `rotary` where it is not known. `shard` says which heads of the layer these are, if not all.
    """

    queries: Float[Tensor, "B H Q D"]
    logits: Logits
    kv_heads: int
    layer: int = 0
    num_layers: int = 1
    output_weight: Float[Tensor, "M columns"] | None = None
    rotary: Rotary | None = None
    shard: Shard | None = None
    readers: int = 1
    """How many layers attended with these keys; `queries` are those of all of them."""

    of_prompt: bool = False
    """Whether several tokens were read at once; then numbers that are not finite are looked for."""

    new_real: list[int] | None = None
    """How many of the last queries of each row are real, where padding stands before them."""

    spans: BatchSpans | None = None
    """What the cache was told of the texts of its rows."""

    def observation(self, pipeline: Pipeline, view: View, window: int | None) -> Observation:
        """Show a view, with the last `window` of the queries; None shows all."""
        groups = self.queries.shape[1] // self.kv_heads
        heads = slice(view.heads.start * groups, view.heads.stop * groups)
        available = min(self.queries.shape[2], view.keys.shape[2])
        if self.new_real is not None:
            # Padding stands between these queries and those before them.
            available = min(available, self.new_real[view.rows.start])
        count = available if window is None else min(window, available)
        logits = self.logits.of_heads(heads)
        bias = None
        if logits.bias is not None:
            bias = logits.bias.of(view.positions, rows=view.rows, count=count).detach()
        values = view.values if view.shown_values is None else view.shown_values
        return Observation(
            queries=self.queries[view.rows, heads, self.queries.shape[2] - count :],
            keys=view.attended,
            values=values,
            layer=self.layer,
            num_layers=self.num_layers,
            scaling=logits.scaling,
            softcap=logits.softcap,
            sink_logits=logits.sinks,
            position_bias=bias,
            output_weight=self.output_weight,
            positions=view.positions.expand(-1, values.shape[1], -1),
            seen=view.seen,
            budget=pipeline.kept_of(view.newest),
            state=view.state,
            noted=view.noted,
            first_head=heads.start,
            readers=self.readers,
            rotary=self._rotary_of(view),
            shard=self._shard_of(view),
            kept_together=view.shown_values is not None,
        )

    def _rotary_of(self, view: View) -> Rotary | None:
        if self.rotary is None or view.renumbered is None:
            return self.rotary
        return DisplacedRotary(rotary=self.rotary, by=view.renumbered - view.seen)

    def _shard_of(self, view: View) -> Shard | None:
        # An uneven head is compared with no other head, so nothing is exchanged for it.
        return self.shard.alone() if self.shard and view.held_by_head else self.shard
