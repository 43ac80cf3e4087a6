"""Buffers of fixed size and place, and the counts that a captured step reads and writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from jaxtyping import Bool, Int64, Shaped
from torch import Tensor

from kvpolicy.cache.memory.contents import Contents


@attrs.define(eq=False)
class Count:
    """Counts tokens on the device: a step that is replayed counts on."""

    added: Int64[Tensor, ""]
    """Tokens that were written since the rows were stored."""
    seen: Int64[Tensor, ""]
    """Columns that the layer has read, padding included."""

    @classmethod
    def new(cls, device: torch.device) -> Count:
        """Return counts of 0 that stay where they are."""
        return cls(*(fixed((), torch.long, device) for _ in range(2)))

    def restart(self, seen: int) -> None:
        """Begin again behind `seen` columns."""
        self.added.zero_()
        self.seen.fill_(seen)

    def step(self) -> None:
        """Count one token more."""
        self.added.add_(1)
        self.seen.add_(1)


@contextmanager
def writable() -> Iterator[None]:
    """Make tensors that may be written to in any mode, until the block is left."""
    with torch.inference_mode(mode=False), torch.no_grad():
        yield


def fixed(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros that `torch.compile` may expect at the same place in each step."""
    with writable():
        buffer = torch.zeros(shape, dtype=dtype, device=device)
    torch._dynamo.mark_static_address(buffer)
    return buffer


def kept(
    before: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return the buffer of an earlier conversation if it fits, with zeros in it, or a new one."""
    if before is None or (tuple(before.shape), before.dtype, before.device) != (
        tuple(shape),
        dtype,
        device,
    ):
        return fixed(shape, dtype, device)
    with writable():
        return before.zero_()


def fill(buffer: Shaped[Tensor, "B N C *rest"], rows: Shaped[Tensor, "B N S *rest"]) -> None:
    """Write rows into the first places of a buffer."""
    with writable():
        buffer[:, :, : rows.shape[2]] = rows


def buffers_for(
    contents: Contents, room: int, before: Any
) -> tuple[Shaped[Tensor, "B N C D"], Shaped[Tensor, "B N C Dv"]]:
    """Return buffers for the dense keys and values of contents, and for `room` rows more.

    `before` has those of an earlier conversation, or is None.
    """
    keys, values = (
        kept(
            None if before is None else getattr(before, name),
            (*rows.shape[:2], rows.shape[2] + room, rows.shape[3]),
            rows.dtype,
            rows.device,
        )
        for name, rows in (("keys", contents.keys.view), ("values", contents.values.view))
    )
    return keys, values


def row_nbytes(*tables: Shaped[Tensor, "B N _ _"]) -> int:
    """Return the bytes of one row of each table."""
    return sum(each.shape[3] * each.element_size() for each in tables)


def nbytes(*owned: Any) -> int:
    """Return the bytes of what is not None."""
    return sum(each.nbytes for each in owned if each is not None)


def spoiled(new: Shaped[Tensor, "B N 1 D"], full: Bool[Tensor, ""]) -> Shaped[Tensor, "B N 1 D"]:
    """Return a new key, or NaN where there is no room for it: then its logits are NaN, too.

    A step that is replayed asks nobody, so it cannot refuse.
    """
    return new.masked_fill(full, torch.nan)


def longer(
    rows: Shaped[Tensor, "B N K *rest"], before: Tensor | None
) -> Shaped[Tensor, "B N C *rest"]:
    """Return a buffer with these rows and one more, of zeros."""
    shape = (*rows.shape[:2], rows.shape[2] + 1, *rows.shape[3:])
    found = kept(before, shape, rows.dtype, rows.device)
    fill(found, rows)
    return found
