"""Gives a model another attention function for a while, through transformers' interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel


@contextmanager
def replaced_attention(
    model: PreTrainedModel,
    attention: Callable[..., Any],
    *,
    name: str,
    mask: Callable[..., Any] | None = None,
) -> Iterator[None]:
    """Let `attention` compute every attention of the model in this block.

    transformers knows it by `name`, and builds its mask with `mask`; None: it gets no mask. The
    model is left as it was found. A name belongs to one mask function: transformers keeps it.

    >>> import torch
    >>> from kvpolicy.testing.models import tiny_model
    >>> model, shapes = tiny_model(), []
    >>> def zeros(module, query, key, value, mask, **kwargs):
    ...     shapes.append(tuple(key.shape))
    ...     return torch.zeros_like(query.transpose(1, 2)), None
    >>> with replaced_attention(model, zeros, name="zeros"):
    ...     _ = model(torch.tensor([[1, 2, 3]]))
    >>> shapes, model.config._attn_implementation
    ([(1, 2, 3, 8), (1, 2, 3, 8)], 'sdpa')
    """
    config = model.config.get_text_config(decoder=True)
    found = config._attn_implementation
    AttentionInterface.register(name, attention)
    if mask is not None:
        AttentionMaskInterface.register(name, mask)
    # A mapping changes this config alone. A plain name would change a vision tower's as well.
    config._attn_implementation = {"": name}
    try:
        yield
    finally:
        config._attn_implementation = {"": found}
        # transformers never forgets a function: it must not keep alive what `attention` refers to.
        AttentionInterface.register(name, _not_in_use)


def _not_in_use(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("this attention was given to a model for a while, and that is over")
