"""What treats each token alone in a decoder layer: its MLP, its norms and its rotary embedding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from kvpolicy.errors import InvalidValueError, UnsupportedModelError
from kvpolicy.huggingface.model.adapters import model_inside
from kvpolicy.huggingface.model.architectures import MLPS, NORM
from kvpolicy.huggingface.model.config import decoder_config
from kvpolicy.huggingface.model.token_blocks import in_blocks, rotation_in_blocks, rotations

PROBE = 6
"""Tokens that show whether an MLP treats each token alone."""


def chunked_mlp(model: nn.Module, tokens: int) -> AbstractContextManager[None]:
    """Return a context in which no MLP, RMS norm or rotary function sees more tokens at once."""
    model = model_inside(model)
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            "kvpolicy.chunked_mlp needs a transformers PreTrainedModel, not a "
            f"{type(model).__name__}."
        )
    if type(tokens) is not int or tokens < 1:
        raise InvalidValueError(f"'tokens' must be an int of at least 1, not {tokens!r}")
    modules = [*token_wise_mlps(model), *token_wise_norms(model)]
    names: set[str] = set().union(*map(rotations, _layers_of(model)))
    return _chunking(modules, sorted(names), tokens)


def token_wise_mlps(model: PreTrainedModel) -> list[nn.Module]:
    """Return the MLPs of a model's decoder layers, or raise UnsupportedModelError."""
    mlps = [mlp for mlp in map(_mlp_of, _layers_of(model)) if mlp is not None]
    if not mlps:
        raise UnsupportedModelError(
            f"layers of {type(model).__name__} have no module for their MLP (looked for: "
            f"{', '.join(MLPS)}), so it cannot be run in chunks."
        )
    for mlp in {type(mlp): mlp for mlp in mlps}.values():
        _check_token_wise(mlp, model)
    return mlps


def token_wise_norms(model: PreTrainedModel) -> list[nn.Module]:
    """Return the RMS norms around attention and MLPs, and the last one.

    They compute in float32, so a norm of all tokens at once takes as much as the widest layer.
    """
    owners = [model.get_decoder(), *_layers_of(model)]
    return [
        module
        for owner in owners
        for module in owner.children()
        if type(module).__name__.endswith(NORM)
    ]


def _layers_of(model: PreTrainedModel) -> list[nn.Module]:
    modules = model.get_decoder().modules()
    return [module for module in modules if isinstance(module, GradientCheckpointingLayer)]


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
def _chunking(modules: Sequence[nn.Module], names: Sequence[str], tokens: int) -> Iterator[None]:
    with ExitStack() as replaced:
        for module in modules:
            replaced.enter_context(in_blocks(module, tokens))
        for name in names:
            replaced.enter_context(rotation_in_blocks(name, tokens))
        yield
