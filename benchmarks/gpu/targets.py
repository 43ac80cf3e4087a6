"""The targets on a GPU."""

from __future__ import annotations

from typing import Any

from benchmarks.targets import Target

SMALL_EXTRA_MIB = 64
"""What scoring may take beside a layer's own keys and values, without row statistics."""
AUTHORS = "authors' algorithm"


def _evict(length: int, most: float) -> Target:
    return Target(
        text=f"T1: evicting a layer with ReST-KV, of its prefill, {length:,} tokens",
        name="evict", variant="restkv", against="prefill layer", unit="share",
        shape={"L": length}, most=most,
    )  # fmt: skip


def _ratio(text: str, name: str, variant: str, against: str, **more: Any) -> Target:
    return Target(text=text, name=name, variant=variant, against=against, unit="ratio", **more)


def _graph(text: str, variant: str, base: str, name: str, **more: Any) -> Target:
    return _ratio(text, name, variant, base, settings={"form": "CUDA graph"}, **more)


TARGETS = (
    _evict(4096, 0.03),
    _evict(32_768, 0.015),
    _evict(131_072, 0.01),
    *(
        _ratio(
            f"T1: prefill with ReST-KV, of one with SnapKV, {length:,} tokens",
            "prefill ratio", "restkv", "snapkv", shape={"B": 1, "L": length}, most=1.01,
        )
        for length in (16_384, 32_768, 131_072)
    ),
    Target(
        text="T2: extra memory of ReST-KV without row statistics, 131,072 tokens",
        name="extra memory", variant="restkv without row statistics", unit="MiB",
        shape={"L": 131_072}, most=SMALL_EXTRA_MIB,
    ),
    Target(
        text="T2: extra memory of ReST-KV, of the layer's keys and values, 131,072 tokens",
        name="extra memory", variant="restkv", unit="MiB", shape={"L": 131_072}, most=0.125,
        value=lambda row: (row.value or 0.0) / row.settings["layer_kv_mib"], value_unit="share",
    ),
    Target(
        text="T3: compaction at 1,024 kept",
        name="compaction", variant="auto", against="copy_", unit="GB/s", shape={"K": 1024},
        most=10e-6, value=lambda row: row.median_seconds or 0.0, value_unit="s",
    ),
    _ratio(
        "T3: compaction, of the bandwidth of copy_, 16,384 kept",
        "compaction over copy_", "auto", "copy_", shape={"K": 16_384}, least=0.8,
    ),
    Target(
        text="T4: attention over uneven heads, of the bandwidth of copy_, 32,768 tokens",
        name="ragged_attention", variant="auto", unit="s", shape={"L": 32_768}, least=0.7,
        value=lambda row: row.settings["share_of_copy"] or 0.0, value_unit="share",
    ),
    _graph(
        "T4: decode step evicted, of a dense cache as long, 1 x 131,072",
        "evicted", "evicted, dense", "evicted over dense", shape={"B": 1, "L": 131_072}, most=1.03,
    ),
    _graph(
        "T4: decode step with uneven heads, of a dense cache as large, 1 x 131,072",
        "uneven", "evicted, dense", "uneven over dense", shape={"B": 1, "L": 131_072}, most=1.10,
    ),
    *(
        _graph(
            f"T5: decode step full over evicted, {batch} x {length:,}",
            "full, dense", "evicted", "full over evicted", shape={"B": batch, "L": length},
            least=least,
        )
        for batch, length, least in ((1, 131_072, 1.8), (8, 65_536, 4.0))
    ),
    _ratio(
        "T5: attention of a step full over evicted, 1 x 131,072",
        "attention ratio", "full", "evicted, each in its faster form",
        shape={"B": 1, "L": 131_072}, least=15,
    ),
    *(
        _ratio(
            f"T6: peak memory of a prefill{words}, of the full cache's, 131,072 tokens",
            "peak memory ratio", f"restkv{words}", "full", shape={"L": 131_072}, most=most,
        )
        for words, most in (("", 0.66), (", chunked MLP", 0.48))
    ),
    *(
        _ratio(
            f"T7: evicting faster than the authors' algorithm, {length:,} tokens",
            "speed-up", "restkv", AUTHORS, shape={"L": length}, least=20,
        )
        for length in (4096, 16_384)
    ),
    _ratio(
        "T7: less extra memory than the authors' algorithm, 32,768 tokens",
        "memory saved", "restkv", AUTHORS, shape={"L": 32_768}, least=50,
    ),
)  # fmt: skip
