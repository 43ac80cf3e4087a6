"""Memory that evicting one layer takes beside the layer, counted for each recipe without a GPU.

The tensors have the shapes of Llama-3.1-8B and no data, and say that they are on a GPU. So the code
takes the branches of a GPU, and kernels allocate what they allocate there. What an allocator wastes
is not counted. Numbers that the host reads are those of a layer that keeps the budget in each head.

python -m benchmarks.eviction_memory --length 131072
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Annotated, Any
from unittest.mock import patch

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from triton.runtime.jit import KernelInterface

import kvpolicy
from benchmarks.counted_memory import Counted
from benchmarks.layers import LayerShape
from benchmarks.timing import MIB
from benchmarks.waits import pretended
from benchmarks.waits.counts import Counts
from benchmarks.waits.pretended import Pretended, pretending
from kvpolicy import Observation, Policy
from kvpolicy.cache.eviction.one_layer import evicted
from kvpolicy.observation.rotary import PlainRotary
from kvpolicy.pipeline.doubts import Doubts, collected
from kvpolicy.stages.scoring import RunningScorer

LENGTH, BUDGET = 131_072, 1024
LIMIT = 0.125
"""The largest share of the layer's keys and values that an eviction may take beside them."""


class Answers(TorchDispatchMode):
    """Lets tensors without data be read: every number is the budget, and every answer is yes."""

    def __init__(self, budget: int) -> None:
        """Read this number everywhere."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._budget = budget

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation; tensors with data lose it beside tensors without."""
        kwargs = kwargs or {}
        leaves = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        if not any(each.is_meta for each in leaves):
            return function(*args, **kwargs)
        name = function._schema.name
        if name == "aten::_local_scalar_dense":
            return True if args[0].dtype == torch.bool else self._budget
        if name in ("aten::_to_copy", "aten::copy_") and self._leaves_the_device(args, kwargs):
            return self._read(args, kwargs)
        args, kwargs = tree_map(_without_data, (args, kwargs))
        return function(*args, **kwargs)

    def _leaves_the_device(self, args: Any, kwargs: Any) -> bool:
        if isinstance(args[1] if len(args) > 1 else None, Tensor):
            return not args[0].is_meta
        device = kwargs.get("device")
        return device is not None and torch.device(device).type == "cpu"

    def _read(self, args: Any, kwargs: Any) -> Tensor:
        if len(args) > 1:
            filled: Tensor = args[0].fill_(self._budget)
            return filled
        dtype = kwargs.get("dtype") or args[0].dtype
        return torch.full(args[0].shape, self._budget, dtype=dtype, device="cpu")


def _without_data(each: Any) -> Any:
    held = isinstance(each, Tensor) and not each.is_meta and each.dim() > 0
    return each.to("meta") if held else each


@contextmanager
def counted_on_a_gpu(budget: int, counts: Counts | None = None) -> Iterator[Counted]:
    """Count storages while tensors pretend to be on a GPU, whose kernels are not launched.

    `counts` counts launches and waits, too.
    """
    counts = Counts() if counts is None else counts

    def launched(kernel: Any, grid: Any) -> Callable[..., None]:
        return lambda *args, **kwargs: counts.note("launches", kernel.__name__)

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(patch.object(pretended, "HELD_ON", torch.device("meta")))
        stack.enter_context(patch.object(KernelInterface, "__getitem__", launched))
        stack.enter_context(collected(Doubts()))
        stack.enter_context(Answers(budget))
        counted = stack.enter_context(Counted())
        stack.enter_context(pretending(counts.operation))
        yield counted


def layer_without_data(policy: Policy, length: int, shape: LayerShape) -> Observation:
    """Return a layer that shows as many queries as the policy's scorer asks for."""
    window = policy.scorer.window
    if window is None or isinstance(policy.scorer, RunningScorer):
        window = length

    def empty(*sizes: int) -> Pretended:
        return Pretended(torch.empty(sizes, dtype=torch.bfloat16, device="meta"))

    return Observation(
        queries=empty(1, shape.heads, window, shape.dim),
        keys=empty(1, shape.kv_heads, length, shape.dim),
        values=empty(1, shape.kv_heads, length, shape.dim),
        output_weight=empty(shape.model_dim, shape.heads * shape.dim),
        rotary=PlainRotary(dim=shape.dim),
        budget=min(length, BUDGET),
        num_layers=32,
    )


def extra_bytes(recipe: str, length: int, shape: LayerShape) -> int:
    """Return the bytes at the peak of an eviction beside those of the layer itself."""
    policy = kvpolicy.recipe(recipe, budget=BUDGET)
    with counted_on_a_gpu(BUDGET) as counted:
        layer = layer_without_data(policy, length, shape)
        # What is computed once for a model is there before its second prompt.
        evicted(policy, layer)
        counted.peak = before = counted.live
        evicted(policy, layer)
        return counted.peak - before


def main(
    recipe: Annotated[list[str] | None, typer.Option(help="Which recipes.")] = None,
    length: Annotated[int, typer.Option(help="Positions of the layer.")] = LENGTH,
) -> None:
    """Print the extra memory of each recipe; exit with 1 if one takes more than the limit."""
    names = recipe or [each.name for each in kvpolicy.installed() if each.kind == "recipe"]
    shape = LayerShape()
    layer = 2 * 2 * shape.kv_heads * shape.dim * length
    title = f"Extra memory of evicting a layer of {length:,} positions, {layer / MIB:,.0f} MiB"
    table = Table("recipe", "MiB", "of the layer", "within 12.5 %", title=title)
    count = partial(extra_bytes, length=length, shape=shape)
    found = {name: count(name) for name in names}
    for name, extra in sorted(found.items(), key=lambda pair: pair[1]):
        within = "yes" if extra <= LIMIT * layer else "no"
        table.add_row(name, f"{extra / MIB:,.1f}", f"{extra / layer:.1%}", within)
    Console(width=100).print(table)
    raise typer.Exit(1 if max(found.values()) > LIMIT * layer else 0)


if __name__ == "__main__":
    typer.run(main)
