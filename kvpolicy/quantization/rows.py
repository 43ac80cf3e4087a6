"""A row of a head as bytes: its codes, then the step and the least value of each group."""

from __future__ import annotations

import attrs
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from kvpolicy.quantization.backends import BACKENDS

_FACTS = 8
"""The bytes of the step and the least value of a group, both float32."""


@attrs.frozen(kw_only=True)
class RowFormat:
    """Writes rows as bytes, and reads them back.

    Each row is written alone, so its bytes may be moved like the row. A group has `group` channels,
    or the largest smaller number that divides the channels of a row evenly.

    >>> form = RowFormat(bits=4, group=64)
    >>> row = torch.arange(16.0)
    >>> code = form.encoded(row)
    >>> code.dtype, code.shape, torch.equal(form.decoded(code, 16, torch.float32), row)
    (torch.uint8, torch.Size([16]), True)
    """

    bits: int
    group: int
    backend: str = "minmax"

    def nbytes(self, dim: int) -> int:
        """Return the bytes of a row of `dim` channels."""
        return self._code_bytes(dim) + dim // self._size(dim) * _FACTS

    def encoded(self, rows: Float[Tensor, "*lead D"]) -> UInt8[Tensor, "*lead bytes"]:
        """Return rows as bytes."""
        dim = rows.shape[-1]
        if not rows.numel():
            return rows.new_empty((*rows.shape[:-1], self.nbytes(dim)), dtype=torch.uint8)
        groups = rows.reshape(-1, self._size(dim)).float()
        codes, steps, least = BACKENDS[self.backend](groups, self.bits)
        packed = self._packed(codes.reshape(-1, dim))
        facts = [each.float().reshape(len(packed), -1) for each in (steps, least)]
        code = torch.cat([packed, torch.cat(facts, 1).view(torch.uint8)], 1)
        return code.view(*rows.shape[:-1], -1)

    def decoded(
        self, code: UInt8[Tensor, "*lead bytes"], dim: int, dtype: torch.dtype
    ) -> Float[Tensor, "*lead D"]:
        """Return bytes as rows of `dim` channels. The same bytes always give the same row."""
        flat = code.reshape(-1, code.shape[-1])
        ahead, size = self._code_bytes(dim), self._size(dim)
        # A view as float32 must begin at an aligned address, so the bytes are copied.
        facts = flat[:, ahead:].clone(memory_format=torch.contiguous_format).view(torch.float32)
        steps, least = facts.view(-1, 2, dim // size, 1).unbind(1)
        codes = self._unpacked(flat[:, :ahead], dim).reshape(-1, dim // size, size)
        rows = (codes.float() * steps).add_(least).to(dtype)
        return rows.view(*code.shape[:-1], dim)

    def _size(self, dim: int) -> int:
        """Return how many channels a group has."""
        return next(size for size in range(min(self.group, dim), 0, -1) if dim % size == 0)

    def _code_bytes(self, dim: int) -> int:
        return -(-dim * self.bits // 8)

    def _packed(self, codes: UInt8[Tensor, "R D"]) -> UInt8[Tensor, "R bytes"]:
        """Pack 4-bit codes of the first and the second half of the channels, two in a byte."""
        if self.bits == 8:
            return codes
        if codes.shape[1] % 2:
            codes = torch.nn.functional.pad(codes, (0, 1))
        first, second = codes.chunk(2, 1)
        return first | second << 4

    def _unpacked(self, packed: UInt8[Tensor, "R bytes"], dim: int) -> UInt8[Tensor, "R D"]:
        if self.bits == 8:
            return packed
        return torch.cat([packed & 15, packed >> 4], 1)[:, :dim]
