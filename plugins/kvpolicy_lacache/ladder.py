"""The ladder: which rows of each group of neighbours a layer keeps. They differ between layers."""

from __future__ import annotations

import attrs
import torch
from jaxtyping import Int
from torch import Tensor


@attrs.frozen(kw_only=True)
class Ladder:
    """The size of a group of neighbouring rows, and how many of them a layer keeps (its teeth).

    group = 1 + ceil((layers - span) / (span - overlap))
    teeth = min(ceil(span / (span - overlap)), group)

    With a `gap` above 1 groups are coarser: they have 1 + gap (group - 1) rows, and the teeth are
    `gap` rows apart.

    Shi et al., ICML 2025, https://arxiv.org/abs/2507.14204.

    >>> ladder = Ladder(layers=32, span=9, overlap=3)
    >>> ladder.group, ladder.teeth, ladder.drops
    (5, 2, 3)
    """

    layers: int
    span: int
    overlap: int = 0

    @property
    def group(self) -> int:
        """The number of rows in a group; 1 if the span covers all layers."""
        return 1 + max(0, ceil_div(self.layers - self.span, self.span - self.overlap))

    @property
    def teeth(self) -> int:
        """How many rows of a group a layer keeps."""
        return min(ceil_div(self.span, self.span - self.overlap), self.group)

    @property
    def drops(self) -> int:
        """How many rows of a group a layer drops; 0 if the span covers all layers."""
        return self.group - self.teeth

    def size(self, gap: int) -> int:
        """Return the number of rows in a group whose teeth are `gap` rows apart."""
        return 1 + gap * (self.group - 1)

    def thinned(
        self, rows: Int[Tensor, " S"], *, first: int, groups: int, gap: int, offset: int
    ) -> Int[Tensor, " K"]:
        """Return the teeth of `groups` groups, and all rows before and behind these groups.

        The groups begin at `rows[first]`. In each group the teeth begin at row `offset`.

        >>> ladder = Ladder(layers=8, span=4)
        >>> for offset in range(2):
        ...     print(ladder.thinned(torch.arange(6), first=1, groups=2, gap=1, offset=offset))
        tensor([0, 1, 3, 5])
        tensor([0, 2, 4, 5])
        """
        begins = first + offset + self.size(gap) * torch.arange(groups, device="cpu")
        teeth = (begins[:, None] + gap * torch.arange(self.teeth, device="cpu")).flatten()
        behind = first + groups * self.size(gap)
        return torch.cat([rows[:first], rows[teeth[teeth < len(rows)]], rows[behind:]])


def ceil_div(number: int, by: int) -> int:
    """Return number / by, rounded up."""
    return -(-number // by)
