"""Which rows of one layout of a layer are which rows of another layout."""

from __future__ import annotations

from itertools import chain

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from kvpolicy.cache.memory.contents import Contents
from kvpolicy.cache.memory.ragged import RaggedRows

_POSITIONS = 32
"""Bits of a position in a token's number."""


def flat(contents: Contents, name: str) -> Tensor:
    """Return "keys" or "values": the rows of the ragged, then all others by sequence and head."""
    rows: Tensor = getattr(contents, name).view
    rows = rows.reshape(-1, rows.shape[-1])
    ragged = contents.ragged
    return rows if ragged is None else torch.cat([getattr(ragged, name), rows])


def sources(new: Contents, old: Contents) -> tuple[Int[Tensor, " R"], Bool[Tensor, " R"]]:
    """Return for each row of `flat(new)` a row of `flat(old)`, and whether it is the same token."""
    tokens, wanted = _tokens(old), _tokens(new)
    if not len(tokens):
        return torch.zeros_like(wanted), torch.zeros_like(wanted, dtype=torch.bool)
    ordered, order = tokens.sort(stable=True)
    places = order[torch.searchsorted(ordered, wanted).clamp_(max=len(tokens) - 1)]
    return places, tokens[places] == wanted


def _tokens(contents: Contents) -> Int[Tensor, " R"]:
    """Return a number for every token of every sequence and head; a head's padding shares one."""
    slots, ragged = contents.slots, contents.ragged
    positions = slots.positions
    heads = torch.arange(slots.batch * slots.heads, device=positions.device)
    numbers = _numbered(heads.view(slots.batch, slots.heads, 1), positions).reshape(-1)
    if ragged is None:
        return numbers
    of_ragged = heads.repeat_interleave(ragged.lengths.flatten().to(heads.device))
    return torch.cat([_numbered(of_ragged, ragged.positions.long()), numbers])


def _numbered(heads: Tensor, positions: Tensor) -> Tensor:
    return (heads << _POSITIONS) + positions + 1


def last_rows(ragged: RaggedRows, count: int) -> tuple[Int[Tensor, " R"], Int[Tensor, " R"]]:
    """Return where the last `count` rows of each head are in the ragged, and in [B, N, count].

    Heads are right-aligned; those that hold fewer rows have fewer. Both are on the CPU.
    """
    ends = list(chain.from_iterable(((rows.start, rows.stop) for _, _, rows in ragged.heads())))
    first, last = torch.tensor(ends, device="cpu").view(-1, 2).split(1, 1)
    rows = last - count + torch.arange(count, device="cpu")
    held = (rows >= first).flatten().nonzero()[:, 0]
    return rows.flatten()[held], held
