"""Observe: what one attention layer shows to a policy before it evicts."""

from __future__ import annotations

import attrs
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from kvpolicy.observation.fold import Reduce, weighted, weights_of
from kvpolicy.observation.note import Notes
from kvpolicy.observation.products import scaled_products
from kvpolicy.observation.projection import output_factors
from kvpolicy.observation.rotary import Rotary
from kvpolicy.observation.shapes import shape_of
from kvpolicy.observation.shard import Shard
from kvpolicy.observation.softmax import softmax
from kvpolicy_kernels import window_attention


@attrs.frozen(kw_only=True, eq=False)
class Observation:
    """One layer's last queries and all keys and values that it holds, after rotary embedding.

    An observation has no padding. Rows of unequal length are shown one by one, and so are heads
    that hold different numbers of positions. The W queries belong to the last W tokens, which hold
    the last W of the S positions. So query w attends to positions 0 ... S - W + w. If they are
    `ahead`, they stand at the next position of the text, or at the next W positions if they are
    `consecutive` too, and each attends to all S positions.

    - `state` is the scorer's running state, and `noted` its notes of rows; None if it has none.
    - `positions` are the true positions of the keys, and `seen` counts the tokens read so far.
    - `budget` is how many positions each key/value head may keep.
    - `output_weight` is that of the whole layer. The H heads shown are those from `first_head` on.
    - `rotary` is the model's rotary embedding; None if it is not known.
    - `readers` counts the layers that attended with these keys. If several did, the query heads of
      a key/value head are those of the first layer, then those of the next. `output_weight` has
      columns for all of them, each of its own layer.
    - `sink_logits` are the learned sinks, one for each query head; None if the model has none.
    - `position_bias` is what the model adds to the logits by distance; None if it adds nothing.
    - `kept_together` says that all heads keep a position or none does, since they share latents.
      Keys, values and scores have all heads; the policy reduces the scores to one head.
    - `shard` is set if several processes share the model, and this one shows its heads alone.
      `of_all_heads` collects those of all processes.

    >>> layer = Observation(queries=torch.ones(1, 4, 2, 8), keys=torch.ones(1, 2, 9, 8),
    ...                     values=torch.ones(1, 2, 9, 8))
    >>> layer.window, layer.length, layer.seen
    (2, 9, 9)
    """

    queries: Float[Tensor, "B H W D"] = attrs.field(repr=shape_of)
    keys: Float[Tensor, "B N S D"] = attrs.field(repr=shape_of)
    values: Float[Tensor, "B N S Dv"] = attrs.field(repr=shape_of)
    layer: int = 0
    num_layers: int = 1
    scaling: float = attrs.field()
    softcap: float | None = None
    sink_logits: Float[Tensor, " H"] | None = attrs.field(default=None, repr=shape_of)
    position_bias: Float[Tensor, "B H W S"] | None = attrs.field(default=None, repr=shape_of)
    output_weight: Float[Tensor, "M columns"] | None = attrs.field(default=None, repr=shape_of)
    positions: Int[Tensor, "B N S"] = attrs.field(repr=shape_of)
    seen: int = attrs.field()
    budget: int = attrs.field()
    state: Float[Tensor, "B H S *rest"] | None = attrs.field(default=None, repr=shape_of)
    noted: Notes = None
    first_head: int = 0
    readers: int = 1
    rotary: Rotary | None = attrs.field(default=None, repr=False)
    kept_together: bool = False
    shard: Shard | None = attrs.field(default=None, repr=False)
    ahead: bool = False
    consecutive: bool = False

    @scaling.default
    def _one_over_root_dim(self) -> float:
        return float(self.queries.shape[-1] ** -0.5)

    @positions.default
    def _nothing_evicted(self) -> Int[Tensor, "B N S"]:
        return torch.arange(self.length, device=self.keys.device).expand(self.keys.shape[:3])

    @seen.default
    def _as_many_as_held(self) -> int:
        return self.length

    @budget.default
    def _all_of_it(self) -> int:
        return self.length

    @property
    def window(self) -> int:
        """W, the number of queries shown. It is at most the scorer's window."""
        return self.queries.shape[2]

    @property
    def length(self) -> int:
        """S, the number of positions held."""
        return self.keys.shape[2]

    @property
    def attention(self) -> Float[Tensor, "B H W S"]:
        """The softmax attention of every query, in float32. `folded_attention` needs less."""
        return softmax(self.logits, self.sink_logits)

    @property
    def logits(self) -> Float[Tensor, "B H W S"]:
        """The attention logits of every query, in float32; -inf for positions after it."""
        logits = scaled_products(self.queries, self.keys, self.scaling)
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        if self.position_bias is not None:
            logits += self.position_bias
        if self.ahead:
            return logits
        later = torch.ones(self.window, self.window, dtype=torch.bool, device=logits.device)
        newest = logits[..., self.length - self.window :]
        newest.copy_(newest.masked_fill(later.triu_(1), -torch.inf))
        return logits

    def folded_attention(self, reduce: Reduce) -> Float[Tensor, "B H S"]:
        """Return attention whose W queries `reduce` has folded into one.

        If `reduce` is a weighted sum, the attention [B, H, W, S] is never stored as a whole.
        """
        weights = weights_of(reduce, self.window, self.queries.device)
        if weights is None:
            return reduce(self.attention)
        if self.position_bias is not None:
            heads = (self.head(each).attention for each in range(self.keys.shape[1]))
            return torch.cat([weighted(weights, each) for each in heads], 1)
        return window_attention(
            self.queries,
            self.keys,
            weights,
            scaling=self.scaling,
            softcap=self.softcap,
            sinks=self.sink_logits,
            causal=not self.ahead,
        ).attention

    @property
    def query_positions(self) -> Int[Tensor, " W"]:
        """The true positions of the queries shown: the last W seen, the next W, or the next."""
        first = self.seen if self.ahead else self.seen - self.window
        positions = torch.arange(first, first + self.window, device=self.keys.device)
        apart = self.consecutive or not self.ahead
        return positions if apart else torch.full_like(positions, self.seen)

    @property
    def output_factors(self) -> Float[Tensor, "H R Dv"] | None:
        """R of a QR of each query head's columns of the output projection; None without one.

        ||R_h x|| = ||W_h x|| for every x. R_h is Dv x Dv where W_h is M x Dv.
        """
        if self.output_weight is None:
            return None
        heads = self.output_weight.shape[1] // self.values.shape[-1]
        return output_factors(self.output_weight, heads)[self._heads_shown]

    @property
    def group_factors(self) -> Float[Tensor, "N R GDv"] | None:
        """R of a QR of each group's columns of the output projection; None without one.

        ||R_g x|| = ||sum_h W_h x_h||, where x holds the x_h of the group's G query heads in order.
        """
        if self.output_weight is None:
            return None
        kv_heads = self.keys.shape[1]
        groups = self.queries.shape[1] // kv_heads
        all_groups = self.output_weight.shape[1] // (groups * self.values.shape[-1])
        first = self.first_head // groups
        return output_factors(self.output_weight, all_groups)[first : first + kv_heads]

    @property
    def head_weights(self) -> Float[Tensor, "H M Dv"] | None:
        """A view of each query head's columns of the output projection; None without one."""
        if self.output_weight is None:
            return None
        weight = self.output_weight.detach()
        by_head = weight.view(weight.shape[0], -1, self.values.shape[-1]).transpose(0, 1)
        return by_head[self._heads_shown]

    @property
    def first_of_layer(self) -> int:
        """The index of the first query head shown among the heads of all processes."""
        return self.first_head + (0 if self.shard is None else self.shard.first_head)

    def of_all_heads(
        self, of_shown: Shaped[Tensor, "B heads *rest"]
    ) -> Shaped[Tensor, "B all *rest"]:
        """Return the tensor that has, for all heads of the layer, what `of_shown` has for some.

        A part that compares heads calls this. All processes must call it in the same order.
        Returns `of_shown` itself if one process has the whole model, or if a head is shown alone.

        >>> from kvpolicy.testing import observation
        >>> observation().of_all_heads(torch.ones(1, 4, 3)).shape
        torch.Size([1, 4, 3])
        """
        if self.shard is None:
            return of_shown
        return torch.cat(list(self.shard.exchange(of_shown)), dim=1)

    @property
    def _heads_shown(self) -> slice:
        return slice(self.first_head, self.first_head + self.queries.shape[1])

    def row(self, index: int) -> Observation:
        """Return the observation of one sequence of the batch.

        >>> layer = Observation(queries=torch.ones(3, 4, 2, 8), keys=torch.ones(3, 2, 9, 8),
        ...                     values=torch.ones(3, 2, 9, 8))
        >>> layer.row(2).keys.shape
        torch.Size([1, 2, 9, 8])
        """
        one = slice(index, index + 1)
        return attrs.evolve(
            self,
            queries=self.queries[one],
            keys=self.keys[one],
            values=self.values[one],
            positions=self.positions[one],
            state=None if self.state is None else self.state[one],
            noted=None if self.noted is None else self.noted[one],
            position_bias=None if self.position_bias is None else self.position_bias[one],
        )

    def head(self, index: int) -> Observation:
        """Return the observation of one key/value head and its group of query heads.

        >>> layer = Observation(queries=torch.ones(1, 4, 2, 8), keys=torch.ones(1, 2, 9, 8),
        ...                     values=torch.ones(1, 2, 9, 8))
        >>> layer.head(1).first_head, layer.head(1).queries.shape
        (2, torch.Size([1, 2, 2, 8]))
        """
        groups = self.queries.shape[1] // self.keys.shape[1]
        one, group = slice(index, index + 1), slice(index * groups, (index + 1) * groups)
        return attrs.evolve(
            self,
            queries=self.queries[:, group],
            keys=self.keys[:, one],
            values=self.values[:, one],
            positions=self.positions[:, one],
            state=None if self.state is None else self.state[:, group],
            sink_logits=None if self.sink_logits is None else self.sink_logits[group],
            position_bias=None if self.position_bias is None else self.position_bias[:, group],
            first_head=self.first_head + group.start,
            shard=None if self.shard is None else self.shard.alone(),
        )
