"""Quantised storage: what a layer holds as bytes, the most recent positions in full as well."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.cache.memory.contents import Contents, Rows
from kvpolicy.cache.memory.ragged import Prefix
from kvpolicy.cache.storage.row_matching import flat, last_rows, sources
from kvpolicy.errors import InvalidValueError, shown
from kvpolicy.options import count, natural, one_of
from kvpolicy.quantization import BACKENDS, RowFormat, check_backend

_BOTH = ("keys", "values")


@attrs.define
class Recent:
    """The last C rows of every head, right-aligned, as the model made them."""

    keys: Float[Tensor, "B N C D"]
    values: Float[Tensor, "B N C Dv"]

    @property
    def count(self) -> int:
        """C, the rows of a head."""
        return self.keys.shape[2]

    def of(self, name: str) -> Tensor:
        """Return "keys" or "values"."""
        rows: Tensor = getattr(self, name)
        return rows

    def select_rows(self, batch: Tensor) -> None:
        """Keep, repeat or reorder the sequences of the batch."""
        for name in _BOTH:
            rows = self.of(name)
            setattr(self, name, rows.index_select(0, batch.to(rows.device)))

    def forget_last(self, dropped: Int[Tensor, "B N"]) -> None:
        """Drop the last rows of each head, and the first ones of those that have more left."""
        left = max(0, self.count - int(dropped.max()))
        first = self.count - left - dropped.clamp(max=self.count - left)
        places = (first[..., None] + torch.arange(left))[..., None]
        for name in _BOTH:
            rows = self.of(name)
            index = places.expand(-1, -1, -1, rows.shape[-1]).to(rows.device)
            setattr(self, name, rows.gather(2, index))


@attrs.define
class QuantizedContents:
    """A layer with bytes for rows; `recent` has the last rows of every head again, in full."""

    layout: Contents
    recent: Recent

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return self.layout.nbytes + self.recent.keys.nbytes + self.recent.values.nbytes

    @property
    def row_nbytes(self) -> int:
        """Bytes that key and value of one position have in full."""
        both = (self.recent.keys, self.recent.values)
        return sum(each.shape[-1] * each.element_size() for each in both)

    def select_rows(self, batch: Tensor) -> None:
        """Keep, repeat or reorder the sequences of the batch."""
        self.layout.select_rows(batch)
        self.recent.select_rows(batch)

    def forget_last(self, count: int) -> None:
        """Drop each sequence's last `count` tokens, or raise as `Slots.held_of_last` does."""
        before = _lengths(self.layout)
        self.layout.forget_last(count)
        self.recent.forget_last(before - _lengths(self.layout))


def _lengths(layout: Contents) -> Int[Tensor, "B N"]:
    """Return the slots of each head; on the CPU."""
    if layout.prefix is not None:
        return layout.prefix.lengths + layout.slots.held
    return torch.full((layout.slots.batch, layout.slots.heads), layout.slots.held)


def _known_bits(instance: object, option: attrs.Attribute[Any], value: Any) -> None:
    if type(value) is not int or value not in (4, 8):
        raise InvalidValueError(f"{option.name!r} must be 4 or 8, not {shown(value)}")


@attrs.frozen(kw_only=True)
class Quantized:
    """Keys and values of `bits` bits, with a step and a least value for each `group` of channels.

    The last `residual` positions of a head are kept, and read, in full precision. Every row is
    quantised once, when it comes, from what the model made: evictions move its bytes. Only rows
    that a compactor changes are quantised anew.

    Raises InvalidValueError for values that cannot be, and for a back end that is not installed.
    """

    bits: int = attrs.field(default=8, validator=_known_bits)
    backend: str = attrs.field(default="minmax", validator=one_of(*BACKENDS))
    residual: int = attrs.field(default=32, validator=natural)
    group: int = attrs.field(default=64, validator=count)

    def __attrs_post_init__(self) -> None:
        """Refuse a back end that cannot do it here."""
        check_backend(self.backend, self.bits)

    @property
    def format(self) -> RowFormat:
        """How a row becomes bytes."""
        return RowFormat(bits=self.bits, group=self.group, backend=self.backend)

    def store(self, contents: Contents, before: QuantizedContents | None) -> QuantizedContents:
        """Quantise what is new or was changed, and carry over the bytes of all other rows."""
        codes = self._carried(contents, before)
        return QuantizedContents(layout=_laid_out(contents, codes), recent=self._recent(contents))

    def extend(self, stored: QuantizedContents, contents: Contents) -> None:
        """Quantise the rows behind those that are stored."""
        layout, recent = stored.layout, stored.recent
        for name in _BOTH:
            rows: Rows = getattr(layout, name)
            new = getattr(contents, name).behind(rows.held)
            rows.append(self.format.encoded(new))
            joined = torch.cat([recent.of(name), new], 2)
            # A view would keep alive what it is a view of.
            setattr(recent, name, _last(joined, self.residual).clone())
        layout.slots, layout.state = contents.slots, contents.state
        if layout.prefix is not None and contents.prefix is not None:
            layout.prefix = attrs.evolve(layout.prefix, state=contents.prefix.state)

    def restored(self, stored: QuantizedContents) -> Contents:
        """Return keys and values as numbers."""
        layout, recent = stored.layout, stored.recent
        prefix = layout.prefix
        return Contents(
            keys=self._dense(layout.keys, recent.keys),
            values=self._dense(layout.values, recent.values),
            slots=layout.slots.copied(),
            state=layout.state,
            prefix=None if prefix is None else self._prefix(prefix, layout.slots.held, recent),
        )

    def prefetch(self, stored: QuantizedContents) -> None:
        """Do nothing: it lies where it is needed."""

    def _carried(self, contents: Contents, before: QuantizedContents | None) -> dict[str, Tensor]:
        """Return the bytes of all rows, one after another."""
        if before is None:
            return {name: self.format.encoded(flat(contents, name)) for name in _BOTH}
        known = self.restored(before)
        places, found = sources(contents, known)
        return {
            name: self._codes(
                flat(contents, name), flat(known, name), flat(before.layout, name), places, found
            )
            for name in _BOTH
        }

    def _codes(
        self, rows: Tensor, known: Tensor, codes: Tensor, places: Tensor, found: Tensor
    ) -> Tensor:
        """Take the bytes of rows that are what they were; quantise the others."""
        if not len(known):
            return self.format.encoded(rows)
        same = found & (known[places] == rows).all(-1)
        changed = (~same).nonzero()[:, 0]
        return codes[places].index_copy_(0, changed, self.format.encoded(rows[changed]))

    def _recent(self, contents: Contents) -> Recent:
        prefix = contents.prefix
        if prefix is None:
            keys, values = contents.keys.view, contents.values.view
            return Recent(_last(keys, self.residual).clone(), _last(values, self.residual).clone())
        count = min(self.residual, prefix.longest)
        places = last_rows(prefix, count)
        return Recent(*(_right_aligned(prefix, name, count, places) for name in _BOTH))

    def _dense(self, codes: Rows, recent: Float[Tensor, "B N C D"]) -> Rows:
        """Return numbers for all rows, with room for the next ones."""
        view, held = codes.view, codes.held
        exact = min(held, recent.shape[2])
        dim, older = recent.shape[-1], held - exact
        rows = Rows(recent.new_empty((*view.shape[:2], held + 16, dim)))
        rows.truncate(held)
        rows.view[:, :, :older] = self.format.decoded(view[:, :, :older], dim, recent.dtype)
        rows.view[:, :, older:] = _last(recent, exact)
        return rows

    def _prefix(self, prefix: Prefix, later: int, recent: Recent) -> Prefix:
        """Return numbers for a prefix; the `later` rows behind it are the most recent ones."""
        count = max(0, recent.count - later)
        into, where = last_rows(prefix, count)
        decoded = {}
        for name in _BOTH:
            exact = recent.of(name)[:, :, :count]
            dim = exact.shape[-1]
            rows = self.format.decoded(getattr(prefix, name), dim, exact.dtype)
            chosen = exact.reshape(-1, dim)[where.to(rows.device)]
            decoded[name] = rows.index_copy_(0, into.to(rows.device), chosen)
        return attrs.evolve(prefix, **decoded)


def _last(rows: Float[Tensor, "B N S D"], count: int) -> Float[Tensor, "B N C D"]:
    return rows[:, :, max(0, rows.shape[2] - count) :]


def _right_aligned(
    prefix: Prefix, name: str, count: int, places: tuple[Tensor, Tensor]
) -> Float[Tensor, "B N C D"]:
    rows: Tensor = getattr(prefix, name)
    source, target = (each.to(rows.device) for each in places)
    dense = rows.new_zeros((prefix.lengths.numel() * count, rows.shape[-1]))
    dense = dense.index_copy_(0, target, rows[source])
    return dense.view(*prefix.lengths.shape, count, rows.shape[-1])


def _laid_out(contents: Contents, codes: dict[str, Tensor]) -> Contents:
    """Return a layer with bytes for rows."""
    prefix = contents.prefix
    count = 0 if prefix is None else len(prefix.positions)
    shape = contents.keys.view.shape[:3]
    keys, values = (Rows(codes[name][count:].view(*shape, codes[name].shape[-1])) for name in _BOTH)
    if prefix is not None:
        prefix = attrs.evolve(prefix, **{name: codes[name][:count] for name in _BOTH})
    return Contents(
        keys=keys, values=values, slots=contents.slots, state=contents.state, prefix=prefix
    )
