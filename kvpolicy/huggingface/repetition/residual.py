"""Norms of the residual stream before each attention layer, noted while a block runs."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kvpolicy.errors import UnsupportedModelError

Norms = Callable[[nn.Module], Float[Tensor, "B Q"] | None]
"""Returns the norms of what came last to the layer around an attention module."""


class _Notes(threading.local):
    """By layer, what came to it last in this thread; None where nobody asks."""

    def __init__(self) -> None:
        self.by_layer: dict[int, Tensor] | None = None


_notes = _Notes()


def layers_around(decoder: nn.Module, attentions: Sequence[nn.Module]) -> dict[int, nn.Module]:
    """Return the layer around each attention module, by the module's `id`.

    Raises UnsupportedModelError for a module that is in no layer.
    """
    parents = {id(child): each for each in decoder.modules() for child in each.children()}
    for attention in attentions:
        if parents.get(id(attention), decoder) is decoder:
            raise UnsupportedModelError(
                f"{type(attention).__name__} is in no layer of {type(decoder).__name__}, so the "
                "residual stream before it is not known. Use recipe 'kvzip' in place of "
                "'kvzipplus'."
            )
    return {id(each): parents[id(each)] for each in attentions}


def noting_residual(own: Callable[..., Any]) -> Callable[..., Any]:
    """Return a layer's `forward` that takes a note of the hidden states that it is given."""

    @functools.wraps(own)
    def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling() and _notes.by_layer is not None:
            _note(_notes.by_layer, module, args[0] if args else kwargs.get("hidden_states"))
        return own(module, *args, **kwargs)

    return forward


def _note(notes: dict[int, Tensor], layer: nn.Module, hidden: Any) -> None:
    if not isinstance(hidden, Tensor) or hidden.dim() != 3:
        raise UnsupportedModelError(
            f"{type(layer).__name__} is given no hidden states (batch, tokens, channels), so the "
            "residual stream before its attention is not known. Use recipe 'kvzip' in place of "
            "'kvzipplus'."
        )
    precision = torch.promote_types(hidden.dtype, torch.float32)
    notes[id(layer)] = torch.linalg.vector_norm(hidden.detach(), dim=-1, dtype=precision)


@contextmanager
def residual_norms(decoder: nn.Module, attentions: Sequence[nn.Module]) -> Iterator[Norms]:
    """Take notes of the layers around these attention modules until the block is left.

    Without any, nothing is noted. Raises what `layers_around` raises.
    """
    if not attentions:
        yield lambda module: None
        return
    around = layers_around(decoder, attentions)
    notes: dict[int, Tensor] = {}
    before, _notes.by_layer = _notes.by_layer, notes
    try:
        yield lambda module: notes.get(id(around.get(id(module))))
    finally:
        _notes.by_layer = before
