"""Memory-efficient attention for models with soft caps or learned sinks, in place of eager."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import attrs
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import causal_mask_function

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.huggingface.attention.arguments import Call
from kvpolicy.huggingface.attention.causal import PAIRS, causal_attention
from kvpolicy.huggingface.attention.points import (
    Function,
    Point,
    Wrap,
    attention_points,
    mask_points,
)
from kvpolicy.huggingface.model.adapters import model_inside
from kvpolicy.huggingface.model.config import decoder_config

_SINKS, _CAP, _WINDOW = "s_aux", "softcap", "sliding_window"


def memory_efficient_attention(model: nn.Module) -> AbstractContextManager[None]:
    """Return a context in which a model's eager attention makes no tensor of L x L.

    Raises UnsupportedModelError for a model whose attention is not eager, has neither soft caps nor
    learned sinks, or reads its mask.
    """
    model = model_inside(model)
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            "kvpolicy.memory_efficient_attention needs a transformers PreTrainedModel, not a "
            f"{type(model).__name__}."
        )
    config = decoder_config(model)
    _check(model, config)
    attention, mask = partial(_attention, config), partial(_mask, config)
    places = [(point, attention) for point in attention_points(model.modules(), config)]
    places += [(point, mask) for point in mask_points(config)]
    return _wrapped(places)


@contextmanager
def _wrapped(places: Sequence[tuple[Point, Wrap]]) -> Iterator[None]:
    """Wrap inside of all other wraps: caches that are open observe what is called here."""
    for point, wrap in places:
        point.add(wrap, inside=True)
    try:
        yield
    finally:
        for point, wrap in places:
            point.remove(wrap)


def _check(model: PreTrainedModel, config: PreTrainedConfig) -> None:
    name, used = type(model).__name__, config._attn_implementation or "eager"
    if used != "eager":
        raise UnsupportedModelError(
            f"kvpolicy.memory_efficient_attention replaces eager attention, but {name} uses "
            f"{used!r}. Leave it out, or load the model with attn_implementation='eager'."
        )
    modules = [module for module in model.modules() if _needs_eager(module)]
    if not modules:
        raise UnsupportedModelError(
            f"{name} has no attention with soft caps or learned sinks. Load it with "
            "attn_implementation='sdpa', which needs little memory too."
        )
    windowed = getattr(config, _WINDOW, None) is not None
    if windowed and not all(_gives(module, _WINDOW) for module in modules):
        raise UnsupportedModelError(
            f"layers of {name} do not tell their attention the sliding window, which "
            "memory-efficient attention needs. Use the model without "
            "kvpolicy.memory_efficient_attention."
        )
    if getattr(config, _WINDOW, None) == 1:
        raise UnsupportedModelError(
            f"{name} has a sliding window of 1 token, of which transformers' caches keep all. Use "
            "the model without kvpolicy.memory_efficient_attention."
        )
    if any(getattr(module, "config", None) is not config for module in modules):
        raise UnsupportedModelError(
            f"layers of {name} have another config than the model, so that they would get its "
            "masks and another attention. Give all layers the model's config."
        )
    if any(map(_reads_its_mask, modules)):
        raise UnsupportedModelError(
            f"layers of {name} read the mask that they give their attention, and "
            "memory-efficient attention has none for them to read. Use the model without "
            "kvpolicy.memory_efficient_attention."
        )


def _needs_eager(module: nn.Module) -> bool:
    """Whether a module is attention for which transformers does not use PyTorch's kernels."""
    return _gives(module, _SINKS) or _gives(module, _CAP)


def _gives(module: nn.Module, name: str) -> bool:
    """Whether a module's forward gives its attention function this keyword."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    tuples = (each for each in getattr(code, "co_consts", ()) if isinstance(each, tuple))
    return any(name in each for each in tuples)


def _reads_its_mask(module: nn.Module) -> bool:
    """Whether a module's forward does more with its mask than to hand it on."""
    uses = [
        each
        for each in dis.get_instructions(inspect.unwrap(type(module).forward))
        if "FAST" in each.opname and "attention_mask" in each.argrepr.split(", ")
    ]
    return len(uses) > 1


def _attention(config: PreTrainedConfig, own: Function) -> Function:
    """Return attention that is memory-efficient for the layers of one model.

    `own` is called for other models, and with a mask that has a row for each query.
    """

    def attention(
        module: nn.Module,
        query: Float[Tensor, "B H Q D"],
        key: Float[Tensor, "B N S D"],
        value: Float[Tensor, "B N S Dv"],
        attention_mask: Tensor | None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        is_whole = attention_mask is not None and attention_mask.dim() > 2
        if is_whole or getattr(module, "config", None) is not config:
            return own(module, query, key, value, attention_mask, *args, **kwargs)
        logits = _computed(module, kwargs).logits(query)
        # Those that a call shows have no gradient.
        logits = attrs.evolve(logits, sinks=kwargs.get(_SINKS))
        window = kwargs.get(_WINDOW)
        output = causal_attention(query, key, value, logits, visible=attention_mask, window=window)
        return output.transpose(1, 2).contiguous(), None

    return attention


def _computed(module: nn.Module, kwargs: dict[str, Any]) -> Call:
    """Return a call; raise UnsupportedModelError for what is not computed here."""
    weights = kwargs.get("output_attentions") or getattr(module.config, "output_attentions", False)
    dropout = module.training and kwargs.get("dropout")
    if weights or dropout:
        raise UnsupportedModelError(
            f"{type(module).__name__} asks for attention weights or dropout, which "
            "memory-efficient attention does not compute. Call the model outside "
            "kvpolicy.memory_efficient_attention."
        )
    return Call(module, kwargs)


def _mask(config: PreTrainedConfig, build: Function) -> Function:
    """Return what builds the masks of one model: none, or which keys are padding."""

    def mask(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("config") is not config or args or not _is_causal(kwargs):
            return build(*args, **kwargs)
        padding = kwargs.get("attention_mask")
        if padding is None:
            return None
        columns = _columns(padding, int(kwargs["kv_offset"]), kwargs["kv_length"])
        return None if bool(columns.all()) else columns

    return mask


def _columns(padding: Tensor, first: int, count: int) -> Bool[Tensor, "B S"]:
    """Return the columns of `count` keys; tokens behind a mask are padding, as in transformers."""
    missing = max(0, first + count - padding.shape[1])
    return F.pad(padding, (0, missing))[:, first : first + count].bool()


def _is_causal(asked: dict[str, Any]) -> bool:
    """Whether a mask hides nothing but later tokens, those outside of the window, and padding."""
    rule, window = asked.get("mask_function", causal_mask_function), asked.get("local_size")
    # A static cache has room behind the newest token, which only a whole mask hides.
    if int(asked["q_offset"]) + asked["q_length"] != asked["kv_offset"] + asked["kv_length"]:
        return False
    if rule is causal_mask_function:
        return True
    if window is None or asked.get("use_vmap"):
        return False
    device, first = asked["device"], asked["q_offset"]
    key = torch.arange(asked["kv_length"], device=device) + asked["kv_offset"]
    batch = torch.arange(asked["batch_size"], device=device)[:, None, None]
    differs = torch.zeros((), dtype=torch.bool, device=device)
    queries = torch.arange(asked["q_length"], device=device) + first
    for query in queries[:, None].split(max(1, PAIRS // (len(batch) * len(key)))):
        expected = (key <= query) & (key > query - window)
        differs |= (rule(batch, torch.zeros_like(batch), query, key) != expected).any()
    return not bool(differs)
