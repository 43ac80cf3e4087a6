"""What every divider promises."""

from __future__ import annotations

import math
from collections.abc import Mapping

from hypothesis import strategies as st
from torch import Tensor

from kvpolicy.cache.eviction.one_layer import evicted
from kvpolicy.cache.eviction.spans import BatchSpans
from kvpolicy.composition import compose
from kvpolicy.pipeline.title import Title
from kvpolicy.spans import Spans
from kvpolicy.stages.division import LEAST, OUTSIDE, Divider
from kvpolicy.testing.promises.promise import Draw, promise
from kvpolicy.testing.samples import observation
from kvpolicy.testing.strategies import SEEDS

_LENGTHS = st.dictionaries(
    st.sampled_from(["system", "tools", "image 1", "image 2"]), st.integers(0, 4096)
)


@promise("divider")
def gives_each_span_a_part(divider: Divider, draw: Draw) -> None:
    """Each span, and the text outside, gets a finite number of at least 0."""
    lengths = _lengths(draw)
    parts = divider.divide(dict(lengths))
    assert set(parts) == set(lengths), f"parts of {list(parts)}, not of {list(lengths)}"
    for name, part in parts.items():
        assert math.isfinite(part), f"span {name!r} gets {part}"
        assert part >= 0, f"span {name!r} gets {part}"


@promise("divider")
def divides_the_same_twice(divider: Divider, draw: Draw) -> None:
    """The same spans get the same parts, whatever was divided before; `lengths` stays as it is."""
    lengths = _lengths(draw)
    given = dict(lengths)
    first = divider.divide(given)
    assert given == lengths, "its input was written to"
    divider.divide(_lengths(draw))
    assert divider.divide(dict(lengths)) == first


@promise("divider", examples=25)
def keeps_each_span_within_one_position_of_its_part(divider: Divider, draw: Draw) -> None:
    """In a layer, what is protected stays, and spans share the rest, each rounded up or down."""
    length, window = draw(st.integers(24, 64)), draw(st.integers(1, 4))
    ends = sorted(draw(st.lists(st.integers(0, length), min_size=4, max_size=4, unique=True)))
    ranges = {"system": (ends[0], ends[1]), "image": (ends[2], ends[3])}
    protect = draw(st.sampled_from([frozenset(), frozenset({"system"})]))
    kept_whole = sum(ends[1] - ends[0] for _ in protect) + window
    if kept_whole >= length:
        return
    budget = draw(st.integers(kept_whole, length - 1))
    policy = compose(scorer={"name": "snapkv", "window": window}, budget=budget)
    layer = observation(positions=length, window=window, seed=draw(SEEDS))
    own = BatchSpans((Spans(ranges),), protect, divider, Title(kind="divider", type=type(divider)))
    span_of = _span_of(ranges, length)
    for head in evicted(policy, layer, own).positions[0]:
        _check_head(divider, head, span_of, protect, window=window, budget=budget)


def _check_head(
    divider: Divider,
    head: Tensor,
    span_of: list[str],
    protect: frozenset[str],
    *,
    window: int,
    budget: int,
) -> None:
    end = len(span_of) - window
    kept = set(head.tolist())
    for name in protect:
        whole = {at for at, span in enumerate(span_of) if span == name}
        assert whole <= kept, f"protected span {name!r} lost {sorted(whole - kept)}"
    competing = {
        name: sum(span == name for span in span_of[:end]) if name not in protect else 0
        for name in dict.fromkeys([OUTSIDE, *span_of, "system", "image"])
    }
    counts = {
        name: sum(span_of[at] == name for at in kept if at < end) if name not in protect else 0
        for name in competing
    }
    forced = len(span_of) - sum(competing.values())
    shares = _shares(divider.divide(dict(competing)), competing, budget - forced)
    for name, share in shares.items():
        assert abs(counts[name] - share) < 1 + 1e-6, (
            f"span {name!r} keeps {counts[name]} positions, and its share is {share:.2f}"
        )


def _shares(
    parts: Mapping[str, float], competing: Mapping[str, int], free: int
) -> dict[str, float]:
    """Return what each span gets if positions could be divided; the full ones give to others."""
    largest = max(parts.values())
    left = {
        name: max(part, LEAST * largest) if largest else 1.0
        for name, part in parts.items()
        if competing[name]
    }
    found: dict[str, float] = dict.fromkeys(parts, 0.0)
    while left:
        per_part = free / sum(left.values())
        full = [name for name, part in left.items() if competing[name] <= per_part * part]
        if not full:
            return found | {name: per_part * part for name, part in left.items()}
        for name in full:
            found[name] = competing[name]
            free -= competing[name]
            del left[name]
    return found


def _span_of(ranges: Mapping[str, tuple[int, int]], length: int) -> list[str]:
    """Return for each position the name of its span."""
    names = [OUTSIDE] * length
    for name, (start, stop) in ranges.items():
        names[start:stop] = [name] * (stop - start)
    return names


def _lengths(draw: Draw) -> dict[str, int]:
    return {OUTSIDE: draw(st.integers(0, 4096))} | draw(_LENGTHS)
