"""Spans: named ranges of the tokens of a text, such as a system prompt, a tool or an image."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import attrs

from kvpolicy.errors import InvalidValueError, shown, suggest

LARGEST = 2**31 - 1
"""Positions are int32."""

Range: TypeAlias = tuple[int, int]
"""The first token of a span, and the token behind its last one."""

GivenSpans: TypeAlias = Mapping[str, Sequence[int]] | Sequence[Mapping[str, Sequence[int]]]
"""Ranges by name, for all sequences of a batch; or such a mapping for each of them."""

EXAMPLE = 'such as {"system": (0, 24), "image": (40, 616)}'


@attrs.frozen
class Spans:
    """The spans of one sequence: ranges of positions by name, ascending, of which none overlaps.

    Position p is the p-th real token of the sequence; padding does not count. A range has its
    first position and the one behind its last.

    >>> Spans({"image": (40, 616), "system": [0, 24]}).ranges
    {'system': (0, 24), 'image': (40, 616)}

    Raises InvalidValueError for ranges that are none, that are empty, and that overlap.
    """

    ranges: Mapping[str, Range] = attrs.field()

    def __attrs_post_init__(self) -> None:
        """Sort the ranges, and refuse what is none."""
        object.__setattr__(self, "ranges", _checked(self.ranges))

    def between(self, first: int, end: int, names: frozenset[str]) -> int:
        """Return how many of the positions `first` to `end` the spans of these names have.

        >>> Spans({"system": (0, 24), "image": (40, 616)}).between(20, 50, frozenset({"image"}))
        10
        """
        own = (each for name, each in self.ranges.items() if name in names)
        return sum(max(0, min(end, stop) - max(first, start)) for start, stop in own)

    def check_within(self, length: int, row: int) -> None:
        """Raise InvalidValueError if a span reaches behind a prompt of `length` tokens."""
        for name, (start, stop) in self.ranges.items():
            if start >= length:
                raise InvalidValueError(
                    f"span {name!r} ({start}, {stop}) lies behind the first prompt: row {row} of "
                    f"it has {length} tokens. {_WHOLE}"
                )
            if stop > length:
                raise InvalidValueError(
                    f"span {name!r} ({start}, {stop}) is cut: row {row} of the first prompt ends "
                    f"after {length} tokens. {_WHOLE} If the tokenizer or processor has cut the "
                    "text, give it a larger max_length, or truncation=False."
                )


_WHOLE = (
    "Spans count the real tokens of a row, without padding, and lie in the first prompt; generate "
    "may read it in chunks, and a forward reads it whole."
)


def checked_spans(given: Any) -> tuple[Spans, ...]:
    """Return the spans of each sequence; one entry is for all sequences.

    >>> [each.ranges for each in checked_spans([{"tools": (0, 9)}, {}])]
    [{'tools': (0, 9)}, {}]

    Raises InvalidValueError for spans that are none.
    """
    if isinstance(given, Mapping):
        given = [given]
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise InvalidValueError(
            f"spans are a mapping of names to ranges, {EXAMPLE}, or a list with a mapping for each "
            f"sequence of the batch, not {shown(given)}."
        )
    return tuple(Spans(each) for each in given)


def checked_protect(given: Any, spans: Sequence[Spans]) -> frozenset[str]:
    """Return the names of the spans that stay whole; True names all.

    Raises InvalidValueError for a name that no sequence has a span of.
    """
    known = list(dict.fromkeys(name for each in spans for name in each.ranges))
    if isinstance(given, bool):
        return frozenset(known if given else ())
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise InvalidValueError(
            f"protect is a list of names of spans, such as ['system'], or True for all, not "
            f"{shown(given)}."
        )
    names = list(given)
    for name in names:
        if name not in known:
            raise InvalidValueError(
                f"protect names {shown(name)}, and there is no such span.{suggest(name, known)} "
                f"Spans: {', '.join(map(repr, known)) or 'none'}."
            )
    return frozenset(names)


def _checked(given: Any) -> dict[str, Range]:
    if not isinstance(given, Mapping):
        raise InvalidValueError(
            f"the spans of a sequence are a mapping of names to ranges, {EXAMPLE}, not "
            f"{shown(given)}."
        )
    ranges = {_checked_name(name): _checked_range(name, each) for name, each in given.items()}
    ranges = dict(sorted(ranges.items(), key=lambda each: each[1]))
    for name, other in pairwise(ranges):
        if ranges[other][0] < ranges[name][1]:
            raise InvalidValueError(
                f"spans {name!r} {ranges[name]} and {other!r} {ranges[other]} overlap: both have "
                f"token {ranges[other][0]}. A token belongs to one span at most; the second number "
                "of a range is the token behind its last one."
            )
    return ranges


def _checked_name(name: Any) -> str:
    if not isinstance(name, str) or not name:
        raise InvalidValueError(f"the name of a span is a text, not {shown(name)}.")
    return name


def _checked_range(name: str, given: Any) -> Range:
    if isinstance(given, range) and given.step == 1:
        given = (given.start, given.stop)
    ends = plain(given)
    try:
        start, stop = (operator.index(each) for each in ends)
        is_range = not any(isinstance(each, bool) for each in ends)
    except (TypeError, ValueError):
        is_range = False
    if isinstance(given, range) or not is_range:
        raise InvalidValueError(
            f"span {name!r} must be a range of two ints, its first token and the one behind its "
            f"last, such as (40, 616), not {shown(given)}."
        )
    if not 0 <= start < stop <= LARGEST:
        raise InvalidValueError(
            f"span {name!r} must be a range with 0 <= first < end <= {LARGEST}, not "
            f"({start}, {stop}). Tokens count from 0, and the end is the token behind the last one."
        )
    return start, stop


def plain(given: Any) -> Any:
    """Return the ints or lists of a tensor or an array; others as they are."""
    return given.tolist() if hasattr(given, "tolist") else given
