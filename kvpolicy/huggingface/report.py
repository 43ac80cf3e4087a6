"""A report of what each layer of a cache holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from kvpolicy.huggingface.hybrid import linear_nbytes
from kvpolicy.huggingface.layer import PolicyLayer


@attrs.frozen(kw_only=True)
class LayerReport:
    """One layer: tokens seen, slots held by a head on average, bytes allocated.

    `full_nbytes` is what a full cache would need for the tokens seen. `density` is the share of the
    first prompt's causal query-key pairs that attention looked at; None: all of them. `readers` are
    the other layers that attend with these keys. While a prompt is read, the layer holds all of it
    until the last of them has attended: `full_nbytes`.
    """

    layer: int
    evicts: bool
    seen: int
    held: int
    nbytes: int
    full_nbytes: int
    density: float | None = None
    readers: tuple[int, ...] = ()


@attrs.frozen(kw_only=True)
class CacheReport:
    """Every layer of a cache; printing it gives a table.

    >>> layer = LayerReport(layer=0, evicts=True, seen=100, held=25, nbytes=256, full_nbytes=1024)
    >>> print(CacheReport(layers=(layer,)))
    layer  seen  held     bytes  of full
        0   100    25     256 B   25.0 %
      all   100    25     256 B   25.0 %

    With sparse prefill a column more says what share of a prompt's query-key pairs was looked at.
    """

    layers: tuple[LayerReport, ...]

    @property
    def nbytes(self) -> int:
        """Bytes held by all layers."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def full_nbytes(self) -> int:
        """Bytes that the keys and values of all tokens seen would need."""
        return sum(layer.full_nbytes for layer in self.layers)

    @property
    def seen(self) -> int:
        """Tokens that were read."""
        return max((layer.seen for layer in self.layers), default=0)

    @property
    def held(self) -> int:
        """Slots of the layer that holds the most."""
        return max((layer.held for layer in self.layers), default=0)

    @property
    def density(self) -> float | None:
        """Share of query-key pairs that sparse layers looked at on average; None: none is."""
        sparse = [layer.density for layer in self.layers if layer.density is not None]
        return sum(sparse) / len(sparse) if sparse else None

    def __str__(self) -> str:
        """Return the table."""
        head = _head("layer")
        rows = [
            _line(str(layer.layer), layer.seen, layer.held, layer.nbytes, layer.full_nbytes)
            for layer in self.layers
        ]
        lines = [head, *rows, _line("all", self.seen, self.held, self.nbytes, self.full_nbytes)]
        if self.density is not None:
            shares = [
                _share(each) for each in (*(each.density for each in self.layers), self.density)
            ]
            lines = [" ".join(each) for each in zip(lines, ["   pairs", *shares], strict=True)]
        lines += [_shared(layer) for layer in self.layers if layer.readers]
        return "\n".join(lines)


def report_of(cache: Cache) -> CacheReport:
    """Say what every layer of any transformers cache has seen and holds."""
    return CacheReport(
        layers=tuple(_layer_report(index, layer) for index, layer in enumerate(cache.layers))
    )


def _layer_report(index: int, layer: Any) -> LayerReport:
    if isinstance(layer, PolicyLayer):
        return LayerReport(
            layer=index,
            evicts=True,
            seen=layer.seen,
            held=round(layer.mean_held),
            nbytes=layer.nbytes,
            full_nbytes=layer.full_nbytes,
            density=None if layer.density is None else float(layer.density),
            readers=tuple(layer.session.readers[layer.index][1:]),
        )
    keys: Tensor | None = getattr(layer, "keys", None)
    held = 0 if keys is None else keys.shape[-2]
    seen = layer.get_seq_length() if isinstance(layer, CacheLayerMixin) else 0
    owned = 0 if keys is None else keys.nbytes + layer.values.nbytes
    linear = linear_nbytes(layer)
    return LayerReport(
        layer=index,
        evicts=False,
        seen=seen,
        held=held,
        nbytes=owned + linear,
        full_nbytes=(owned // held * seen if held else 0) + linear,
    )


def holdings(report: CacheReport) -> dict[str, str]:
    """Return in words what a cache has seen and holds, and the bytes that it takes.

    >>> layer = LayerReport(layer=0, evicts=True, seen=99, held=25, nbytes=512, full_nbytes=2048)
    >>> holdings(CacheReport(layers=(layer,)))
    {'seen': '99', 'held': '25', 'bytes': '512 B'}
    """
    held = sorted({layer.held for layer in report.layers})
    return {
        "seen": f"{report.seen:,}",
        "held": " to ".join(f"{each:,}" for each in sorted({*held[:1], *held[-1:]})) or "0",
        "bytes": readable_bytes(report.nbytes),
    }


def readable_bytes(count: float) -> str:
    """Return a size in the unit that fits it.

    >>> readable_bytes(3 * 2**20)
    '3.0 MiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"


def table_of(reports: Sequence[CacheReport]) -> str:
    """Return a table with a line for each cache, in the order in which they were used."""
    lines = [
        _line(str(count), each.seen, each.held, each.nbytes, each.full_nbytes)
        for count, each in enumerate(reports, 1)
    ]
    return "\n".join([_head("cache"), *lines])


def _head(name: str) -> str:
    return f"{name:>5} {'seen':>5} {'held':>5} {'bytes':>9} {'of full':>8}"


def _line(name: str, seen: int, held: int, nbytes: int, full: int) -> str:
    share = _share(nbytes / full if full else None)
    return f"{name:>5} {seen:>5} {held:>5} {readable_bytes(nbytes):>9} {share}"


def _shared(layer: LayerReport) -> str:
    others = ", ".join(map(str, layer.readers))
    return (
        f"layer {layer.layer} shares its keys and values with {others}: it holds a whole prompt "
        f"until layer {layer.readers[-1]} has read it"
    )


def _share(share: float | None) -> str:
    """Write a share. What a cache holds besides rows may exceed a full cache of few tokens."""
    if share is None:
        return "-".rjust(8)
    return (">100 %" if share > 1 else f"{share:.1%}".replace("%", " %")).rjust(8)
