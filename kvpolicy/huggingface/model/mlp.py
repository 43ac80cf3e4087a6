"""The MLP of every decoder layer, run over a few tokens at a time: same numbers, less memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from kvpolicy.errors import InvalidValueError, UnsupportedModelError
from kvpolicy.huggingface.model.adapters import model_inside
from kvpolicy.huggingface.model.architectures import MLPS
from kvpolicy.huggingface.model.config import decoder_config
from kvpolicy_kernels import spans

PROBE = 6
"""Tokens that show whether an MLP treats each token alone."""


def chunked_mlp(model: nn.Module, tokens: int) -> AbstractContextManager[None]:
    """Return a context in which no MLP of `model` sees more than `tokens` tokens at once."""
    model = model_inside(model)
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            "kvpolicy.chunked_mlp needs a transformers PreTrainedModel, not a "
            f"{type(model).__name__}."
        )
    if type(tokens) is not int or tokens < 1:
        raise InvalidValueError(f"'tokens' must be an int of at least 1, not {tokens!r}")
    return _chunking(token_wise_mlps(model), tokens)


def token_wise_mlps(model: PreTrainedModel) -> list[nn.Module]:
    """Return the MLPs of a model's decoder layers, or raise UnsupportedModelError."""
    layers = (
        module
        for module in model.get_decoder().modules()
        if isinstance(module, GradientCheckpointingLayer)
    )
    mlps = [mlp for mlp in map(_mlp_of, layers) if mlp is not None]
    if not mlps:
        raise UnsupportedModelError(
            f"layers of {type(model).__name__} have no module for their MLP (looked for: "
            f"{', '.join(MLPS)}), so it cannot be run in chunks."
        )
    for mlp in {type(mlp): mlp for mlp in mlps}.values():
        _check_token_wise(mlp, model)
    return mlps


def _mlp_of(layer: nn.Module) -> nn.Module | None:
    found = (getattr(layer, name, None) for name in MLPS)
    return next((each for each in found if isinstance(each, nn.Module)), None)


@torch.no_grad()
def _check_token_wise(mlp: nn.Module, model: PreTrainedModel) -> None:
    """Refuse an MLP that returns something else for some tokens alone than among others."""
    weight = next(mlp.parameters(), None)
    if weight is None or weight.is_meta or mlp.training:
        return
    size = decoder_config(model).hidden_size
    numbers = torch.arange(PROBE * size, dtype=torch.float32, device=weight.device)
    hidden = numbers.sin().view(1, PROBE, size).to(model.dtype)
    whole, half = _probed(mlp, hidden), _probed(mlp, hidden[:, PROBE // 2 :])
    # Rounding may depend on the number of rows, by far less than what a neighbour adds.
    error = (whole[:, PROBE // 2 :] - half).abs().max()
    if not error <= 0.05 * whole.abs().max():
        raise UnsupportedModelError(
            f"{type(mlp).__name__} of {type(model).__name__} mixes tokens, or remembers them: in "
            "chunks it would give other numbers."
        )


def _probed(mlp: nn.Module, hidden: Float[Tensor, "1 T C"]) -> Float[Tensor, "1 T C"]:
    try:
        output = mlp.forward(hidden)
    except TypeError:
        # It takes more than hidden states, such as the residual: not to be had here.
        return hidden
    if not isinstance(output, Tensor) or output.shape != hidden.shape:
        raise UnsupportedModelError(
            f"{type(mlp).__name__} returns more than hidden states, such as the routing of all "
            "tokens, which cannot be put together from chunks."
        )
    return output.float()


@contextmanager
def _chunking(mlps: Sequence[nn.Module], tokens: int) -> Iterator[None]:
    with ExitStack() as replaced:
        for mlp in mlps:
            replaced.enter_context(_chunked(mlp, tokens))
        yield


@contextmanager
def _chunked(mlp: nn.Module, tokens: int) -> Iterator[None]:
    """Let one module run in chunks until the block is left, also by an exception."""
    own = vars(mlp).get("forward")
    mlp.forward = partial(_run, mlp, mlp.forward, tokens)
    try:
        yield
    finally:
        if own is None:
            del mlp.forward
        else:
            mlp.forward = own


def _run(
    mlp: nn.Module, forward: Callable[..., Any], tokens: int, *args: Any, **kwargs: Any
) -> Any:
    """Call `forward` with at most `tokens` tokens at once, counted over the whole batch."""
    shape = next(each.shape[:2] for each in (*args, *kwargs.values()) if isinstance(each, Tensor))
    # Dropout, in training, would draw other numbers.
    if mlp.training or shape.numel() <= tokens:
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
            f"the MLP is called with a tensor {tuple(given.shape)} beside hidden states of "
            f"{tuple(shape)} tokens, which cannot be cut into chunks of tokens."
        )
    return given.flatten(0, 1)[None, span]
