"""The targets, and whether what was measured meets them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import attrs

from benchmarks.rows import Row

SMALL_EXTRA_MIB = 64
"""What scoring may take beyond a layer's own keys and values, without row statistics."""


@attrs.frozen(kw_only=True)
class Target:
    """A bound on the value of one kind of row."""

    name: str
    text: str
    limit: float
    most: bool
    """Whether the limit is the most that is allowed, or the least."""
    picks: Callable[[Row], bool]
    value: Callable[[Row], float] = lambda row: row.value or 0.0

    def met(self, value: float) -> bool:
        """Whether a value is within the bound."""
        return value <= self.limit if self.most else value >= self.limit


@attrs.frozen(kw_only=True)
class Verdict:
    """A target with what was measured; None where nothing was."""

    target: Target
    value: float | None
    met: bool | None
    reason: str = ""


def _rows(name: str, variant: str | None = None, **wanted: object) -> Callable[[Row], bool]:
    """Pick rows by name, variant, and by entries of their shape and settings."""

    def picks(row: Row) -> bool:
        known = {**row.settings, **row.shape, "against": row.against}
        return (
            row.name == name
            and variant in (None, row.variant)
            and all(known.get(key) == value for key, value in wanted.items())
        )

    return picks


def _evict(length: int, limit: float) -> Target:
    return Target(
        name="T1",
        text=f"evicting a layer with ReST-KV, of its prefill, {length:,} tokens",
        limit=limit,
        most=True,
        picks=_rows("evict", "restkv", L=length),
    )


def _graph(name: str, text: str, title: str, limit: float, *, most: bool, **shape: int) -> Target:
    picks = _rows(title, form="CUDA graph", **shape)
    return Target(name=name, text=text, limit=limit, most=most, picks=picks)


TARGETS = (
    _evict(4096, 0.03),
    _evict(32_768, 0.015),
    _evict(131_072, 0.01),
    *(
        Target(
            name="T1",
            text=f"prefill with ReST-KV, of one with SnapKV, {length:,} tokens",
            limit=1.01,
            most=True,
            picks=_rows("prefill ratio", "restkv", against="snapkv", L=length, B=1),
        )
        for length in (16_384, 32_768, 131_072)
    ),
    Target(
        name="T2",
        text="extra memory of ReST-KV without row statistics, MiB, 131,072 tokens",
        limit=SMALL_EXTRA_MIB,
        most=True,
        picks=_rows("extra memory", "restkv without row statistics", L=131_072),
    ),
    Target(
        name="T2",
        text="extra memory of ReST-KV, of the layer's keys and values, 131,072 tokens",
        limit=0.125,
        most=True,
        picks=_rows("extra memory", "restkv", L=131_072),
        value=lambda row: (row.value or 0) / row.settings["layer_kv_mib"],
    ),
    Target(
        name="T3",
        text="compaction at 1,024 kept, microseconds",
        limit=10,
        most=True,
        picks=_rows("compaction", "auto", K=1024),
        value=lambda row: 1e6 * (row.median_seconds or 0),
    ),
    Target(
        name="T3",
        text="compaction, of the bandwidth of copy_, 16,384 kept",
        limit=0.8,
        most=False,
        picks=_rows("compaction over copy_", K=16_384),
    ),
    Target(
        name="T4",
        text="attention over uneven heads, of the bandwidth of copy_, 32,768 tokens",
        limit=0.7,
        most=False,
        picks=_rows("ragged_attention", "auto", L=32_768),
        value=lambda row: row.settings["share_of_copy"],
    ),
    _graph(
        "T4", "decode step evicted, of a dense cache as long, 1 x 131,072",
        "evicted over dense", 1.03, most=True, B=1, L=131_072,
    ),
    _graph(
        "T4", "decode step with uneven heads, of a dense cache as large, 1 x 131,072",
        "uneven over dense", 1.10, most=True, B=1, L=131_072,
    ),
    _graph(
        "T5", "decode step full over evicted, 1 x 131,072", "full over evicted", 1.8,
        most=False, B=1, L=131_072,
    ),
    _graph(
        "T5", "decode step full over evicted, 8 x 65,536", "full over evicted", 4.0,
        most=False, B=8, L=65_536,
    ),
    Target(
        name="T5",
        text="attention of a step full over evicted, 1 x 131,072",
        limit=15,
        most=False,
        picks=_rows("attention ratio", B=1, L=131_072),
    ),
    Target(
        name="T6",
        text="peak memory of a prefill, of the full cache's, 131,072 tokens",
        limit=0.66,
        most=True,
        picks=_rows("peak memory ratio", "restkv", L=131_072),
    ),
    Target(
        name="T6",
        text="the same with the MLP in chunks, 131,072 tokens",
        limit=0.48,
        most=True,
        picks=_rows("peak memory ratio", "restkv, chunked MLP", L=131_072),
    ),
    *(
        Target(
            name="T7",
            text=f"scoring faster than the authors' algorithm, {length:,} tokens",
            limit=20,
            most=False,
            picks=_rows("speed-up", "restkv", L=length),
        )
        for length in (4096, 16_384)
    ),
    Target(
        name="T7",
        text="less extra memory than the authors' algorithm, 32,768 tokens",
        limit=50,
        most=False,
        picks=_rows("memory saved", "restkv", L=32_768),
    ),
)  # fmt: skip


def verdicts(rows: Sequence[Row]) -> Iterator[Verdict]:
    """Hold what was measured on a GPU against the targets; on a CPU there are none."""
    rows = [row for row in rows if row.device != "cpu"]
    if not rows:
        return
    for target in TARGETS:
        yield from _verdicts(target, rows)


def _verdicts(target: Target, rows: Sequence[Row]) -> Iterator[Verdict]:
    found = [row for row in rows if target.picks(row)]
    if not found:
        yield Verdict(target=target, value=None, met=None, reason="not measured")
    for row in found:
        if row.value is None:
            yield Verdict(target=target, value=None, met=None, reason=row.failure or "no number")
        else:
            value = target.value(row)
            yield Verdict(target=target, value=value, met=target.met(value))
