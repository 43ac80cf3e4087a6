"""Describes in a few lines what a cache holds after a text was generated."""

from __future__ import annotations

from itertools import groupby

from kvpolicy.huggingface.report import CacheReport, LayerReport, readable_bytes


def holdings(report: CacheReport, *, read: int, written: int) -> str:
    """Return a description of a cache: tokens read and written, positions held, bytes, saving.

    >>> layer = LayerReport(layer=0, evicts=True, seen=99, held=25, nbytes=512, full_nbytes=2048)
    >>> print(holdings(CacheReport(layers=(layer,)), read=90, written=10))
    tokens  90 read, 10 written
    held    25 of 99 positions in layer 0
    memory  512 B instead of 2.0 KiB: 75 % saved
    """
    lines = [
        f"tokens  {read:,} read, {written:,} written",
        f"held    {'; '.join(_held(report.layers))}",
        f"memory  {_memory(report)}",
    ]
    if report.density is not None:
        share = f"{report.density:.0%}".replace("%", " %")
        lines.append(f"prefill {share} of the prompt's query-key pairs")
    return "\n".join(lines)


def _held(layers: tuple[LayerReport, ...]) -> list[str]:
    """Describe the layers. Neighbours that hold the same number are described together."""
    runs = [list(run) for _, run in groupby(layers, key=lambda layer: (layer.held, layer.seen))]
    return [f"{run[0].held:,} of {run[0].seen:,} positions in {_named(run)}" for run in runs]


def _named(run: list[LayerReport]) -> str:
    first, last = run[0].layer, run[-1].layer
    return f"layer {first}" if first == last else f"each of layers {first} to {last}"


def _memory(report: CacheReport) -> str:
    held, full = readable_bytes(report.nbytes), readable_bytes(report.full_nbytes)
    if all(layer.held == layer.seen for layer in report.layers):
        return f"{held}; nothing was evicted"
    if report.nbytes >= report.full_nbytes:
        return f"{held}; the text is too short to save memory, a full cache takes {full}"
    return f"{held} instead of {full}: {1 - report.nbytes / report.full_nbytes:.0%} saved".replace(
        "%", " %"
    )
