"""The spans of images in token ids: runs of the token that a processor writes for an image."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from kvpolicy.errors import InvalidValueError, shown
from kvpolicy.spans import Range, plain


def find_spans(
    ids: Any,
    token: int | Iterable[int],
    *,
    attention_mask: Any = None,
    name: str = "image",
    tokens: int | None = None,
) -> list[dict[str, Range]]:
    """Return for each sequence the spans that one token fills, such as the image token.

    - `ids`: token ids [B, L] or [L], as a processor returns them.
    - `token`: the id that stands for a part of an image (or sound), or several such ids. Each run
      of them is a span: "image 1", "image 2" ...
    - `attention_mask`: [B, L], 0 where `ids` has padding, which spans do not count.
    - `tokens`: how many tokens each image has, where all have the same number. Images that stand
      side by side are then told apart, and one that truncation has cut is refused.

    >>> find_spans([5, 9, 9, 9, 5, 9, 9, 9], 9)
    [{'image 1': (1, 4), 'image 2': (5, 8)}]

    Raises InvalidValueError for ids, masks and numbers that are none, and for an image that was
    cut.
    """
    filled, size = _token_ids(token), _checked_size(tokens)
    rows = _rows(ids, "ids")
    masks = [] if attention_mask is None else _rows(attention_mask, "attention_mask")
    if masks and [len(each) for each in masks] != [len(each) for each in rows]:
        raise InvalidValueError("attention_mask must have the shape of ids. Give both of one call.")
    real = [
        [each for each, seen in zip(row, mask, strict=True) if seen]
        for row, mask in zip(rows, masks or [[1] * len(row) for row in rows], strict=True)
    ]
    return [dict(_named(name, _runs(row, filled), size)) for row in real]


def _rows(given: Any, what: str) -> list[list[int]]:
    """Return the rows of a tensor, an array or lists; one row of numbers is one row."""
    rows = plain(given)
    if isinstance(rows, list) and rows and not isinstance(rows[0], list):
        rows = [rows]
    is_known = isinstance(rows, list) and rows and all(isinstance(row, list) for row in rows)
    if not is_known or not all(isinstance(each, int) for row in rows for each in row):
        raise InvalidValueError(
            f"{what} must be ints [B, L] or [L], as a tokenizer or processor returns them, not "
            f"{shown(given)}."
        )
    return list(rows)


def _token_ids(given: Any) -> frozenset[int]:
    ids = plain(given)
    try:
        several = [ids] if isinstance(ids, int) else list(ids)
        found = frozenset(operator.index(each) for each in several)
        is_known = bool(found) and not any(isinstance(each, bool) for each in several)
    except TypeError:
        is_known = False
    if not is_known:
        raise InvalidValueError(
            "token must be the id of a token, such as model.config.image_token_id, or several ids, "
            f"not {shown(given)}."
        )
    return found


def _checked_size(given: Any) -> int | None:
    size: int | None = plain(given)
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
        raise InvalidValueError(
            "tokens must be how many tokens each image has, an int of at least 1, or None where "
            f"images differ, not {shown(given)}."
        )
    return size


def _runs(row: Sequence[int], filled: frozenset[int]) -> Iterator[Range]:
    """Yield the ranges of neighbouring tokens that all are in `filled`."""
    place = 0
    for is_filled, run in groupby(row, filled.__contains__):
        length = len(list(run))
        if is_filled:
            yield place, place + length
        place += length


def _named(name: str, runs: Iterable[Range], tokens: int | None) -> Iterator[tuple[str, Range]]:
    """Yield the ranges with names, those of several images apart."""
    number = 0
    for start, stop in runs:
        size = tokens or stop - start
        for first in range(start, stop, size):
            number += 1
            if first + size > stop:
                raise InvalidValueError(
                    f"{name} {number} has {stop - first} of {size} tokens: it was cut by "
                    "truncation. Give the processor a larger max_length, or truncation=False."
                )
            yield f"{name} {number}", (first, first + size)
