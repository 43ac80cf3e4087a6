"""Peak memory of a prefill, counted without any device: the sum of all live tensors.

Models of real size run on tensors without data. Their attention allocates its output only, as fused
kernels do. An allocator's waste and the workspaces of libraries are not counted.

python -m benchmarks.counted_memory --length 131072
"""

from __future__ import annotations

import argparse
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

import kvpolicy
from benchmarks import rows
from benchmarks.gpu.models import MODELS, config_of
from benchmarks.gpu.scale import REAL, Scale
from kvpolicy.exactness.attention import replaced_attention
from kvpolicy.huggingface.cache_argument import handed

ATTENTION = "kvpolicy-benchmark-output-alone"


class Counted(TorchDispatchMode):
    """Counts the bytes of all storages that are made in its block."""

    def __init__(self) -> None:
        """Start at nothing."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: int = 0
        self.peak: int = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation, and count what it returns."""
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, result)):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


class EvictedLayer(DynamicLayer):
    """Hands out the whole prompt, and holds only the budget."""

    def __init__(self, budget: int) -> None:
        """Start empty."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.budget = budget

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep the last tokens; any others would have the same size."""
        self.keys, self.values = (
            each[:, :, -self.budget :].clone() for each in (key_states, value_states)
        )
        return key_states, value_states


def output_alone(module: Any, query: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """Allocate what attention returns, and nothing else."""
    return torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format), None


def peak_of(call: Callable[[], object]) -> int:
    """Return the most bytes that were allocated at once during a call."""
    with Counted() as counted, torch.no_grad():
        call()
    return int(counted.peak)


def model_without_data(name: str, scale: Scale) -> PreTrainedModel:
    """Return a model whose weights have shapes, but no data."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config_of(name, scale, scale.layers), dtype=scale.dtype
        )
    model.eval()
    return model


def peaks(name: str, scale: Scale, length: int) -> Iterator[tuple[str, int]]:
    """Yield the peak of a prefill with each kind of cache: weights, cache and temporaries."""
    model = model_without_data(name, scale)
    prompt = torch.zeros(1, length, dtype=torch.long, device="meta")
    for variant, held in (("full", length), ("evicted", scale.budget)):
        for chunked in (False, True):
            cache = Cache(layers=[EvictedLayer(held) for _ in range(scale.layers)])
            chunks = kvpolicy.chunked_mlp(model, tokens=scale.mlp_chunk)
            read = partial(model, prompt, **handed(cache, to=model), logits_to_keep=1)
            attention = replaced_attention(model, output_alone, name=ATTENTION)
            with attention, chunks if chunked else nullcontext():
                peak = peak_of(read)
            yield variant + (", chunked MLP" if chunked else ""), peak


def counted_rows(scale: Scale, length: int) -> Iterator[rows.Row]:
    """Yield a row for each model and kind of cache."""
    for name in MODELS:
        counts = dict(peaks(name, scale, length))
        for variant, peak in counts.items():
            yield rows.Row(
                benchmark="counted_memory",
                name="peak memory",
                variant=variant,
                value=peak / 2**30,
                unit="GiB",
                against="full",
                device="none: counted",
                dtype=str(scale.dtype).removeprefix("torch."),
                shape=scale.shape | {"B": 1, "L": length, "K": scale.budget},
                settings={"model": name, "ratio": peak / counts["full"]},
                versions=dict(rows.versions()),
            )


def show(found: list[rows.Row]) -> None:
    """Print a table."""
    table = Table(title=f"Counted peak of a prefill of {found[0].shape['L']:,} tokens")
    for header in ("model", "cache", "GiB", "of full"):
        table.add_column(header, justify="right" if header in ("GiB", "of full") else "left")
    for row in found:
        share = f"{row.settings['ratio']:.3f}"
        table.add_row(row.settings["model"], row.variant, f"{row.value:.2f}", share)
    Console().print(table)


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counted_memory")
    parser.add_argument("--length", type=int, default=131_072)
    parser.add_argument("--output", type=Path, help="where rows go, if anywhere")
    options = parser.parse_args()
    found = list(counted_rows(REAL, options.length))
    if options.output:
        rows.write(options.output, found)
    show(found)


if __name__ == "__main__":
    main()
