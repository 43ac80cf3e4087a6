"""Quantized storage: rows as bytes, and the most recent rows in full precision as well."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.cache.memory.contents import Contents
from kvpolicy.cache.memory.ragged import RaggedRows
from kvpolicy.cache.memory.rows import Rows
from kvpolicy.cache.memory.saved import SAVED
from kvpolicy.cache.storage.residual import BOTH, Residual
from kvpolicy.cache.storage.row_matching import flat, last_rows, sources
from kvpolicy.errors import InvalidValueError, shown
from kvpolicy.options import count, natural, one_of
from kvpolicy.quantization import BACKENDS, RowFormat, check_backend


@attrs.define(eq=False)
class QuantizedContents:
    """A layer with bytes for rows; `residual` repeats the last rows of every head in full."""

    layout: Contents = attrs.field(metadata=SAVED)
    residual: Residual = attrs.field(metadata=SAVED)

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return self.layout.nbytes + self.residual.keys.nbytes + self.residual.values.nbytes

    @property
    def row_nbytes(self) -> int:
        """Bytes of the key and the value of one position, in full precision."""
        both = (self.residual.keys, self.residual.values)
        return sum(each.shape[-1] * each.element_size() for each in both)

    def select_rows(self, batch: Tensor) -> None:
        """Keep, repeat or reorder the sequences of the batch."""
        self.layout.select_rows(batch)
        self.residual.select_rows(batch)

    def forget_last(self, count: int) -> None:
        """Drop each sequence's last `count` tokens.

        Raises CacheStateError as `Slots.held_of_last` does.
        """
        before = _lengths(self.layout)
        self.layout.forget_last(count)
        self.residual.forget_last(before - _lengths(self.layout))


def _lengths(layout: Contents) -> Int[Tensor, "B N"]:
    """Return the slots of each head; on the CPU."""
    if layout.ragged is not None:
        return layout.ragged.lengths + layout.slots.held
    shape = (layout.slots.batch, layout.slots.heads)
    return torch.full(shape, layout.slots.held, dtype=torch.long, device="cpu")


def _known_bits(instance: object, option: attrs.Attribute[Any], value: Any) -> None:
    if type(value) is not int or value not in (4, 8):
        raise InvalidValueError(f"{option.name!r} must be 4 or 8, not {shown(value)}")


@attrs.frozen(kw_only=True)
class Quantized:
    """Keeps keys and values as codes of `bits` bits.

    Each `group` of channels of a row has a step and a least value. The last `residual` positions of
    a head are kept, and read, in full precision. Every row is quantized once, from what the model
    computed; an eviction moves its bytes. Only rows that a compactor changes are quantized again.

    Raises InvalidValueError for an option that is out of range, and for a back end that is not
    installed.
    """

    bits: int = attrs.field(default=8, validator=_known_bits)
    backend: str = attrs.field(default="minmax", validator=one_of(*BACKENDS))
    residual: int = attrs.field(default=32, validator=natural)
    group: int = attrs.field(default=64, validator=count)

    def __attrs_post_init__(self) -> None:
        """Refuse a back end that is not installed or has no codes of so many bits."""
        check_backend(self.backend, self.bits)

    @property
    def form(self) -> type[QuantizedContents]:
        """The class of the stored form."""
        return QuantizedContents

    @property
    def format(self) -> RowFormat:
        """How a row becomes bytes."""
        return RowFormat(bits=self.bits, group=self.group, backend=self.backend)

    def store(self, contents: Contents, before: QuantizedContents | None) -> QuantizedContents:
        """Quantize rows that are new or changed, and carry over the bytes of all other rows."""
        codes = self._carried(contents, before)
        return QuantizedContents(
            layout=_laid_out(contents, codes), residual=self._residual_rows(contents)
        )

    def extend(self, stored: QuantizedContents, contents: Contents) -> None:
        """Quantize the rows behind those that are stored."""
        layout, residual = stored.layout, stored.residual
        for name in BOTH:
            rows: Rows = getattr(layout, name)
            new = getattr(contents, name).behind(rows.held)
            rows.append(self.format.encoded(new))
            joined = torch.cat([residual.of(name), new], 2)
            # A view would keep alive the memory that it is a view of.
            setattr(residual, name, _last(joined, self.residual).clone())
        layout.slots, layout.state = contents.slots, contents.state
        if layout.ragged is not None and contents.ragged is not None:
            layout.ragged = attrs.evolve(layout.ragged, state=contents.ragged.state)

    def load(self, stored: QuantizedContents) -> Contents:
        """Return keys and values as numbers."""
        layout, residual = stored.layout, stored.residual
        ragged = layout.ragged
        return Contents(
            keys=self._dense(layout.keys, residual.keys),
            values=self._dense(layout.values, residual.values),
            slots=layout.slots.copied(),
            state=layout.state,
            ragged=None if ragged is None else self._ragged(ragged, layout.slots.held, residual),
        )

    def prefetch(self, stored: QuantizedContents) -> None:
        """Do nothing: the bytes are on the device already."""

    def _carried(self, contents: Contents, before: QuantizedContents | None) -> dict[str, Tensor]:
        """Return the bytes of all rows, one after another."""
        if before is None:
            return {name: self.format.encoded(flat(contents, name)) for name in BOTH}
        known = self.load(before)
        places, found = sources(contents, known)
        return {
            name: self._codes(
                flat(contents, name), flat(known, name), flat(before.layout, name), places, found
            )
            for name in BOTH
        }

    def _codes(
        self, rows: Tensor, known: Tensor, codes: Tensor, places: Tensor, found: Tensor
    ) -> Tensor:
        """Take the bytes of rows that did not change; quantize the others."""
        if not len(known):
            return self.format.encoded(rows)
        same = found & (known[places] == rows).all(-1)
        changed = (~same).nonzero()[:, 0]
        return codes[places].index_copy_(0, changed, self.format.encoded(rows[changed]))

    def _residual_rows(self, contents: Contents) -> Residual:
        ragged = contents.ragged
        if ragged is None:
            keys, values = contents.keys.view, contents.values.view
            return Residual(
                _last(keys, self.residual).clone(), _last(values, self.residual).clone()
            )
        count = min(self.residual, ragged.longest)
        places = last_rows(ragged, count)
        return Residual(*(_right_aligned(ragged, name, count, places) for name in BOTH))

    def _dense(self, codes: Rows, residual: Float[Tensor, "B N C D"]) -> Rows:
        """Return numbers for all rows, with room for the next ones."""
        view, held = codes.view, codes.held
        exact = min(held, residual.shape[2])
        dim, older = residual.shape[-1], held - exact
        rows = Rows(residual.new_empty((*view.shape[:2], held + 16, dim)))
        rows.truncate(held)
        rows.view[:, :, :older] = self.format.decoded(view[:, :, :older], dim, residual.dtype)
        rows.view[:, :, older:] = _last(residual, exact)
        return rows

    def _ragged(self, ragged: RaggedRows, later: int, residual: Residual) -> RaggedRows:
        """Return numbers for ragged rows; the `later` dense rows are more recent than they are."""
        count = max(0, residual.count - later)
        into, where = last_rows(ragged, count)
        decoded = {}
        for name in BOTH:
            exact = residual.of(name)[:, :, :count]
            dim = exact.shape[-1]
            rows = self.format.decoded(getattr(ragged, name), dim, exact.dtype)
            chosen = exact.reshape(-1, dim)[where.to(rows.device)]
            decoded[name] = rows.index_copy_(0, into.to(rows.device), chosen)
        return attrs.evolve(ragged, **decoded)


def _last(rows: Float[Tensor, "B N S D"], count: int) -> Float[Tensor, "B N C D"]:
    return rows[:, :, max(0, rows.shape[2] - count) :]


def _right_aligned(
    ragged: RaggedRows, name: str, count: int, places: tuple[Tensor, Tensor]
) -> Float[Tensor, "B N C D"]:
    rows: Tensor = getattr(ragged, name)
    source, target = (each.to(rows.device) for each in places)
    dense = rows.new_zeros((ragged.lengths.numel() * count, rows.shape[-1]))
    dense = dense.index_copy_(0, target, rows[source])
    return dense.view(*ragged.lengths.shape, count, rows.shape[-1])


def _laid_out(contents: Contents, codes: dict[str, Tensor]) -> Contents:
    """Return a layer with bytes for rows."""
    ragged = contents.ragged
    count = 0 if ragged is None else len(ragged.positions)
    shape = contents.keys.view.shape[:3]
    keys, values = (Rows(codes[name][count:].view(*shape, codes[name].shape[-1])) for name in BOTH)
    if ragged is not None:
        ragged = attrs.evolve(ragged, **{name: codes[name][:count] for name in BOTH})
    return Contents(
        keys=keys, values=values, slots=contents.slots, state=contents.state, ragged=ragged
    )
