"""Shows a progress bar, layer by layer, while a model reads its prompt."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch.utils.hooks import RemovableHandle

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def prefill_progress(model: PreTrainedModel, tokens: int, console: Console) -> Iterator[None]:
    """Show a progress bar while `model` reads its next prompt.

    The bar and its hooks on the model are removed when the last attention layer is done. Without a
    terminal there is no bar.
    """
    layers = _numbered(model)
    if not (console.is_terminal and layers):
        yield
        return
    columns = (TextColumn("reading {task.fields[tokens]:,} tokens, layer"), MofNCompleteColumn())
    bar = Progress(*columns, BarColumn(), TimeElapsedColumn(), console=console, transient=True)
    last = max(layers.values())
    task = bar.add_task("", total=last + 1, tokens=tokens)
    handles: list[RemovableHandle] = []

    def finish() -> None:
        bar.stop()
        for handle in handles:
            handle.remove()

    def passed(layer: torch.nn.Module, *_: Any) -> None:
        bar.update(task, completed=layers[layer] + 1)
        if layers[layer] == last:
            finish()

    handles += [layer.register_forward_hook(passed) for layer in layers]
    bar.start()
    try:
        yield
    finally:
        finish()


def _numbered(model: PreTrainedModel) -> dict[torch.nn.Module, int]:
    """Return the modules that have a `layer_idx`, and it: attention layers, in transformers."""
    numbers = {
        module: getattr(module, "layer_idx", None) for module in model.get_decoder().modules()
    }
    return {module: number for module, number in numbers.items() if isinstance(number, int)}
