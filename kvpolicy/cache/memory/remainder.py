"""One more row of each head, which stands for all positions that the head has evicted."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from kvpolicy.cache.memory.saved import SAVED
from kvpolicy.cache.memory.sent import sent
from kvpolicy.errors import CacheStateError
from kvpolicy.observation.shard import Exchange


@attrs.frozen(kw_only=True, eq=False)
class Remainder:
    """A key, a value, and the count of evicted positions, for each head.

    It has no position: it is neither scored nor evicted nor cropped. Attention adds log(count) to
    its logit, so that it weighs as much as `count` equal rows. A head with a count of 0 has none.
    """

    keys: Float[Tensor, "B N D"] = attrs.field(metadata=SAVED)
    values: Float[Tensor, "B N Dv"] = attrs.field(metadata=SAVED)
    counts: Int64[Tensor, "B N"] = attrs.field(metadata=SAVED)

    @property
    def bias(self) -> Float[Tensor, "B N"]:
        """What attention adds to the logits: log(count), and so -inf for no row."""
        return self.counts.to(self.keys.dtype).log()

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return self.keys.nbytes + self.values.nbytes + self.counts.nbytes

    def with_more(self, newer: Remainder) -> Remainder:
        """Return what stands for the positions of both: means weighted by the counts.

        >>> old, new = (torch.full((1, 1, 1), each) for each in (2.0, 6.0))
        >>> count = torch.ones(1, 1, dtype=torch.long)
        >>> older = Remainder(keys=old, values=old, counts=3 * count)
        >>> both = older.with_more(Remainder(keys=new, values=new, counts=count))
        >>> both.keys.item(), both.counts.item()
        (3.0, 4)
        """
        counts = self.counts + newer.counts
        share = (newer.counts / counts.clamp(min=1)).to(self.keys.dtype)[..., None]
        return Remainder(
            keys=torch.lerp(self.keys, newer.keys, share),
            values=torch.lerp(self.values, newer.values, share),
            counts=counts,
        )

    def select_rows(self, batch: Tensor) -> Remainder:
        """Return that of these sequences of the batch."""
        rows = batch.to(self.keys.device)
        return Remainder(
            keys=self.keys.index_select(0, rows),
            values=self.values.index_select(0, rows),
            counts=self.counts.index_select(0, rows),
        )

    def fits(self, heads: tuple[int, int], widths: tuple[int, int]) -> bool:
        """Whether there is a key and a value of these widths for each of (B, N) heads."""
        rows = zip((self.keys, self.values), widths, strict=True)
        fits = all(tuple(each.shape) == (*heads, width) for each, width in rows)
        return fits and tuple(self.counts.shape) == heads


def joined(parts: Sequence[Remainder], dim: int) -> Remainder:
    """Return the remainders of several heads (`dim` 1) or sequences (`dim` 0) as one."""
    if len(parts) == 1:
        return parts[0]
    keys, values, counts = (
        torch.cat([getattr(part, name) for part in parts], dim)
        for name in ("keys", "values", "counts")
    )
    return Remainder(keys=keys, values=values, counts=counts)


def check_held(
    positions: Int[Tensor, "B N S"], seen: Sequence[int], count: int, exchange: Exchange | None
) -> None:
    """Raise CacheStateError unless all heads hold the last `count` tokens of each sequence.

    `exchange` brings what the heads of other processes hold.
    """
    start = sent([each - count for each in seen], positions.device)
    held = (positions >= start[:, None, None]).sum(-1)
    if exchange is not None:
        held = torch.cat(list(exchange(held)), 1)
    fewest = int(held.min())
    if fewest < count:
        raise CacheStateError(
            f"cannot crop {count} tokens: {count - fewest} of them were evicted, and the remainder "
            "stands for them, which cannot give them back. Keep at least as many recent tokens "
            "(recent=...), or start over with cache.reset()."
        )
