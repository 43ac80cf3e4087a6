"""What every storage promises."""

from __future__ import annotations

import copy
from typing import Any

import attrs
import torch
from hypothesis import strategies as st
from torch import Tensor

from kvpolicy.cache.memory.contents import Contents
from kvpolicy.cache.memory.saved import saved_fields
from kvpolicy.cache.storage.protocol import AnyStorage
from kvpolicy.testing.promises.promise import Draw, promise
from kvpolicy.testing.samples import normal
from kvpolicy.testing.strategies import SEEDS


@promise("storage")
def loads_the_tokens_that_were_stored(storage: AnyStorage, draw: Draw) -> None:
    """Positions, running state, shapes and dtypes come back as they were; rows are finite."""
    contents = _contents(draw)
    before = copy.deepcopy(contents)
    loaded = storage.load(storage.store(contents, None))
    assert torch.equal(loaded.positions, before.positions)
    assert (loaded.slots.lengths, loaded.slots.seen) == (before.slots.lengths, before.slots.seen)
    assert torch.equal(_state(loaded), _state(before))
    for found, expected in zip(_rows(loaded), _rows(before), strict=True):
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        assert found.device == expected.device
        assert found.isfinite().all()


@promise("storage")
def loses_nothing_more_when_it_stores_again(storage: AnyStorage, draw: Draw) -> None:
    """What was loaded, stored and loaded again is the same, bit for bit."""
    stored = storage.store(_contents(draw), None)
    first, again = storage.load(stored), storage.load(stored)
    _assert_same_rows(first, again)
    _assert_same_rows(storage.load(storage.store(again, stored)), first)


@promise("storage")
def adds_new_rows_and_leaves_the_others(storage: AnyStorage, draw: Draw) -> None:
    """Decoded tokens stand behind the rows that were there, which stay as they were."""
    stored = storage.store(_contents(draw), None)
    held = storage.load(stored).slots.held
    for step in range(draw(st.integers(1, 3))):
        before = storage.load(stored)
        contents = storage.load(stored)
        batch, heads, dim = (contents.keys.view.shape[axis] for axis in (0, 1, 3))
        new = normal(step, batch, heads, 1, dim).to(contents.keys.view)
        contents.append(new, new.to(contents.values.view))
        storage.extend(stored, contents)
        after = storage.load(stored)
        assert after.slots.held == held + step + 1
        count = before.slots.held
        # A storage may keep the newest rows in full precision, and the rows before them coarser.
        torch.testing.assert_close(
            after.keys.view[:, :, :count], before.keys.view, rtol=0.2, atol=0.2
        )
        torch.testing.assert_close(after.keys.view[:, :, -1:], new, rtol=0.2, atol=0.2)


@promise("storage")
def moves_kept_rows_as_they_are(storage: AnyStorage, draw: Draw) -> None:
    """After an eviction the rows that are kept are those that were loaded before."""
    stored = storage.store(_contents(draw, padded=False), None)
    whole = storage.load(stored)
    kept = torch.arange(0, whole.slots.held, 2, device="cpu")
    evicted = storage.load(stored)
    rows = tuple(table[:, :, kept].clone() for table in _rows(evicted))
    fewer = Contents.of(*(table.clone() for table in rows))
    fewer.slots.replace(whole.slots.positions[:, :, kept], [len(kept)] * len(rows[0]))
    fewer.slots.seen = list(whole.slots.seen)
    loaded = storage.load(storage.store(fewer, stored))
    assert torch.equal(loaded.positions, whole.positions[:, :, kept])
    # The rows that become the newest may be kept more precisely from now on, but not less.
    for found, expected in zip(_rows(loaded), rows, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@promise("storage")
def follows_the_rows_of_the_batch(storage: AnyStorage, draw: Draw) -> None:
    """Rows that are repeated, left out or reordered are those of the contents."""
    stored = storage.store(_contents(draw), None)
    expected = storage.load(stored)
    order = draw(st.lists(st.integers(0, expected.slots.batch - 1), min_size=1, max_size=4))
    rows = torch.tensor(order, device="cpu")
    expected.select_rows(rows)
    stored.select_rows(rows)
    loaded = storage.load(stored)
    assert torch.equal(loaded.positions, expected.positions)
    _assert_same_rows(loaded, expected)


@promise("storage")
def forgets_the_last_tokens(storage: AnyStorage, draw: Draw) -> None:
    """Tokens that are taken back are gone, and the others keep their positions."""
    stored = storage.store(_contents(draw, padded=False), None)
    expected = storage.load(stored)
    count = draw(st.integers(1, expected.slots.held - 1))
    expected.forget_last(count)
    stored.forget_last(count)
    loaded = storage.load(stored)
    assert torch.equal(loaded.positions, expected.positions)
    assert loaded.slots.seen == expected.slots.seen
    assert [table.shape for table in _rows(loaded)] == [table.shape for table in _rows(expected)]


@promise("storage", examples=1)
def says_what_goes_into_a_file(storage: AnyStorage, draw: Draw) -> None:
    """The stored form is an attrs class with saved fields, of the class that `form` names."""
    stored = storage.store(_contents(draw), None)
    assert type(stored) is storage.form
    assert attrs.has(storage.form)
    assert saved_fields(storage.form), "no field of the stored form has the metadata SAVED"
    assert stored.nbytes > 0
    assert stored.row_nbytes > 0


def _contents(draw: Draw, *, padded: bool = True) -> Contents:
    """Draw what a layer holds after its first forward."""
    batch, heads = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    length, dim = draw(st.integers(2, 40)), draw(st.sampled_from([8, 16]))
    seed, dtype = draw(SEEDS), draw(st.sampled_from([torch.float32, torch.bfloat16]))
    keys, values = (normal(seed + at, batch, heads, length, dim).to(dtype) for at in (0, 1))
    contents = Contents.of(keys, values)
    pads = draw(st.lists(st.integers(0, length - 1), min_size=batch, max_size=batch))
    if padded and any(pads):
        real = torch.arange(length) >= torch.tensor(pads)[:, None]
        contents.mark_padding(real, 0)
    if draw(st.booleans()):
        contents.state = normal(seed + 2, batch, 2 * heads, length)
    return contents


def _rows(contents: Contents) -> tuple[Tensor, Tensor]:
    return contents.keys.view, contents.values.view


def _state(contents: Contents) -> Any:
    return torch.zeros(0) if contents.state is None else contents.state


def _assert_same_rows(found: Contents, expected: Contents) -> None:
    for mine, theirs in zip(_rows(found), _rows(expected), strict=True):
        assert torch.equal(mine, theirs)
