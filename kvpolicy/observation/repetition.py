"""A second pass: a text is read again behind itself, chunk by chunk, to see what repeats what."""

from __future__ import annotations

from typing import NamedTuple

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.observation.observation import Observation


class Chunk(NamedTuple):
    """Tokens `first` to `end` of a text, and the ids by which the model is made to repeat them."""

    first: int
    end: int
    ids: Int[Tensor, "B Q"]


@attrs.frozen(kw_only=True)
class Repetition:
    """How a text is repeated: in chunks of `size` tokens, each behind all that is held.

    The tokens of a chunk come last. Before them come words, the last `overlap` tokens of the chunk
    before, and `answer`. The words are `first` where a chunk begins the conversation, else `later`.
    With `residual` the norms of the residual stream are shown, too.

    >>> three = Repetition(size=2, overlap=1, first=(7,), later=(8, 9))
    >>> [chunk.ids.tolist() for chunk in three.chunks(torch.tensor([[1, 2, 3]]), begins=True)]
    [[[7, 1, 2]], [[8, 9, 2, 3]]]
    """

    size: int
    overlap: int = 0
    first: tuple[int, ...] = ()
    later: tuple[int, ...] = ()
    answer: tuple[int, ...] = ()
    residual: bool = False

    def chunks(self, text: Int[Tensor, "B P"], *, begins: bool) -> list[Chunk]:
        """Return the chunks of a text; `begins` says whether nothing was read before it."""
        found = []
        for first in range(0, text.shape[1], self.size):
            end = min(first + self.size, text.shape[1])
            words = self.first if begins and not first else self.later
            before = text[:, max(0, first - self.overlap) : first]
            parts = self._rows(words, text), before, self._rows(self.answer, text)
            found.append(Chunk(first, end, torch.cat([*parts, text[:, first:end]], 1)))
        return found

    def _rows(self, ids: tuple[int, ...], text: Int[Tensor, "B P"]) -> Int[Tensor, "B T"]:
        if not ids:
            return text[:, :0]
        return torch.tensor(ids, dtype=text.dtype, device=text.device).expand(len(text), -1)


@attrs.frozen(kw_only=True, eq=False)
class Repeated:
    """One chunk that was repeated, as one layer shows it.

    `observation` has the queries of the Q tokens that repeat it, and the keys and values of all
    that is held and of these Q behind it. The chunk is at positions `first` to `end` of the keys.
    `residual` are the norms of the residual stream before the layer, of the Q tokens; None if they
    were not asked for.
    """

    observation: Observation
    first: int
    end: int
    residual: Float[Tensor, "B Q"] | None = None
