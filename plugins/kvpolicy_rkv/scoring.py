"""Score by importance minus redundancy."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy.observation.fold import Reduce
from kvpolicy.observation.observation import Observation
from kvpolicy.observation.softmax import softmax
from kvpolicy.options import as_float, count, odd_count, one_of, share
from kvpolicy_kernels import gaussian_logits, pool_scores, rows_per_block, spans
from kvpolicy_rkv.redundancy import Retain, redundancy


@attrs.frozen(kw_only=True)
class RedundancyScorer:
    """Scores a position by the window's attention to it, minus the redundancy of its key.

    score_i = mix importance_i - (1 - mix) redundancy_i

    Importance is a key/value head's attention to the past. Its logits are the maximum over the
    group's query heads. It is folded over the window, and pooled by a maximum over `width`
    neighbours. Redundancy is the softmax of a key's mean cosine with the others (see
    `kvpolicy_rkv.redundancy`). Positions of the window have no importance.

    Cai et al., NeurIPS 2025, https://arxiv.org/abs/2505.24133.

    >>> from kvpolicy import Observation
    >>> keys = torch.tensor([[[[0.0, 1.0], [1.0, 0.0], [2.0, 0.0], [0.0, -1.0]]]])
    >>> layer = Observation(queries=torch.zeros(1, 1, 1, 2), keys=keys, values=keys)
    >>> scorer = RedundancyScorer(window=1, mix=0.5, width=1, retain="none")
    >>> scorer.score(layer, lambda attention: attention.mean(-2))
    tensor([[[ 0.0723,  0.0111,  0.0111, -0.0944]]])
    """

    window: int = attrs.field(default=8, validator=count)
    mix: float = attrs.field(default=0.1, converter=as_float, validator=share)
    width: int = attrs.field(default=7, validator=odd_count)
    threshold: float = attrs.field(default=0.5, converter=as_float, validator=share)
    retain: Retain = attrs.field(default="last", validator=one_of("last", "first", "none"))

    def score(self, observation: Observation, reduce: Reduce) -> Float[Tensor, "B H S"]:
        """Return the scores of a key/value head for each of its query heads."""
        importance = self._importance(observation, reduce)
        repeated = redundancy(observation.keys, threshold=self.threshold, retain=self.retain)
        scores = self.mix * importance - (1 - self.mix) * repeated
        groups = observation.queries.shape[1] // observation.keys.shape[1]
        return scores.repeat_interleave(groups, dim=1)

    def _importance(self, observation: Observation, reduce: Reduce) -> Float[Tensor, "B N S"]:
        shape = (observation.keys.shape[1], -1)
        by_group = observation.queries.float().unflatten(1, shape).transpose(1, 2).contiguous()
        folded = [
            reduce(
                softmax(
                    _group_logits(by_group[:, :, heads], observation, heads),
                    _group_sinks(observation, heads),
                )
            )
            for heads in _parts(observation)
        ]
        attention = folded[0] if len(folded) == 1 else torch.cat(folded, 1)
        pooled = pool_scores(attention, self.width, mode="max", edges="zero")
        return F.pad(pooled, (0, observation.window))


def _parts(observation: Observation) -> Iterator[slice]:
    """Yield some key/value heads at a time: on a GPU what fits into a block, else all."""
    keys = observation.keys
    if keys.device.type != "cuda":
        yield slice(0, keys.shape[1])
        return
    # The greatest logits, those that are compared with them, and attention.
    floats = 3 * keys.shape[0] * observation.window * keys.shape[2]
    yield from spans(0, keys.shape[1], rows_per_block(floats, keys.device, layer=2 * keys.nbytes))


def _group_logits(
    by_group: Float32[Tensor, "B G n W D"], observation: Observation, heads: slice
) -> Float[Tensor, "B n W P"]:
    """Return the logits of the past: the maximum over the query heads of each group."""
    past = observation.keys[:, heads, : observation.length - observation.window]
    # One query head of each group at a time: [B, H, W, P] is never stored.
    if past.device.type == "cuda":
        logits = (_products(each, past) for each in by_group.unbind(1))
    else:
        keys = past.float().mT
        logits = (each @ keys for each in by_group.unbind(1))
    greatest = next(logits)
    for each in logits:
        torch.maximum(greatest, each, out=greatest)
    greatest *= observation.scaling
    cap = observation.softcap
    return greatest if cap is None else cap * torch.tanh(greatest / cap)


def _products(
    queries: Float[Tensor, "B N W D"], keys: Float[Tensor, "B N P D"]
) -> Float[Tensor, "B N W P"]:
    """Return the products of queries and keys in float32, without a copy of the keys."""
    products = gaussian_logits(keys, queries.flatten(1, 2), None, scaling=1.0)
    return products.view(*queries.shape[:3], keys.shape[2])


def _group_sinks(observation: Observation, heads: slice) -> Float[Tensor, " n"] | None:
    """Return each group's learned sink: the maximum over its query heads, as for other logits."""
    sinks = observation.sink_logits
    return None if sinks is None else sinks.view(observation.keys.shape[1], -1)[heads].amax(1)
