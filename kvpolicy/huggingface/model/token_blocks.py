"""Runs what treats each token alone over a few tokens at a time: same numbers, less memory."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.huggingface.model.architectures import ROTATION
from kvpolicy_kernels import spans

Pair = tuple[Float[Tensor, "B H T D"], Float[Tensor, "B N T D"]]


@contextmanager
def in_blocks(module: nn.Module, tokens: int) -> Iterator[None]:
    """Let one module run in blocks until the context is left, also by an exception."""
    own = vars(module).get("forward")
    module.forward = partial(_run, module, module.forward, tokens)
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def _run(
    module: nn.Module, forward: Callable[..., Any], tokens: int, *args: Any, **kwargs: Any
) -> Any:
    """Call `forward` with at most `tokens` tokens at once, counted over the whole batch."""
    shape = next(each.shape[:2] for each in (*args, *kwargs.values()) if isinstance(each, Tensor))
    # Dropout, in training, would draw other numbers.
    if module.training or shape.numel() <= tokens:
        return forward(*args, **kwargs)
    result: Tensor | None = None
    for span in spans(0, shape.numel(), tokens):
        part = forward(
            *(_tokens_of(each, shape, span) for each in args),
            **{name: _tokens_of(each, shape, span) for name, each in kwargs.items()},
        )
        if result is None:
            result = part.new_empty((shape.numel(), *part.shape[2:]))
        result[span] = part[0]
    return None if result is None else result.unflatten(0, shape)


def _tokens_of(given: Any, shape: torch.Size, span: slice) -> Any:
    """Return some tokens of [B, T, ...] as [1, t, ...]; what is no tensor stays as it is."""
    if not isinstance(given, Tensor):
        return given
    if given.shape[:2] != shape:
        raise UnsupportedModelError(
            f"a module is called with a tensor {tuple(given.shape)} beside hidden states of "
            f"{tuple(shape)} tokens, which cannot be cut into chunks of tokens."
        )
    return given.flatten(0, 1)[None, span]


def rotations(layer: nn.Module) -> set[str]:
    """Return the modules of Python in which a decoder layer finds its rotary function."""
    names = {type(module).__module__ for module in layer.modules()}
    return {name for name in names if hasattr(sys.modules.get(name), ROTATION)}


@contextmanager
def rotation_in_blocks(name: str, tokens: int) -> Iterator[None]:
    """Let the rotary function of a module of Python run in blocks until the context is left."""
    module = sys.modules[name]
    own = getattr(module, ROTATION)
    ours = partial(_rotated, own, tokens)
    setattr(module, ROTATION, ours)
    try:
        yield
    finally:
        # If somebody has wrapped ours meanwhile, it stays inside: it changes no number.
        if getattr(module, ROTATION) is ours:
            setattr(module, ROTATION, own)


def _rotated(
    rotate: Callable[..., Pair],
    tokens: int,
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B N T D"],
    cos: Any,
    sin: Any,
    *args: Any,
    **kwargs: Any,
) -> Pair:
    """Rotate queries and keys block by block, where the tables have a row for each token."""
    length = q.shape[2] if q.dim() == 4 else 0
    tables = (cos, sin)
    plain = not args and kwargs.get("unsqueeze_dim", 1) == 1 and set(kwargs) <= {"unsqueeze_dim"}
    fits = all(isinstance(each, Tensor) and each.shape[-2:-1] == (length,) for each in tables)
    if not (plain and fits and k.shape[2:3] == (length,)) or length * q.shape[0] <= tokens:
        return rotate(q, k, cos, sin, *args, **kwargs)
    rotated: Pair | None = None
    for span in spans(0, length, max(1, tokens // q.shape[0])):
        some = (each[..., span, :] for each in tables)
        part = rotate(q[:, :, span], k[:, :, span], *some, **kwargs)
        if rotated is None:
            rotated = (_like(q, part[0]), _like(k, part[1]))
        for whole, rows in zip(rotated, part, strict=True):
            whole[:, :, span] = rows
    return (q, k) if rotated is None else rotated


def _like(whole: Tensor, part: Tensor) -> Tensor:
    return torch.empty_like(whole, dtype=part.dtype)
