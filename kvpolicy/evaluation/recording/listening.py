"""Listens to a model's attention while it reads, and leaves the model as it was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Listener: TypeAlias = Callable[[nn.Module, Tensor], None]
"""Is told of each attention block that attends, and of its queries after rotary embedding."""


@contextmanager
def heard(model: PreTrainedModel, listener: Listener) -> Iterator[None]:
    """Tell `listener` of every call of attention in the block.

    Only what calls transformers' attention interface is heard.

    >>> import torch
    >>> from kvpolicy.testing import tiny_model
    >>> model, shapes = tiny_model(), []
    >>> with heard(model, lambda block, queries: shapes.append(list(queries.shape))):
    ...     _ = model(torch.tensor([[1, 2, 3]]))
    >>> shapes, model.config._attn_implementation
    ([[1, 4, 3, 8], [1, 4, 3, 8]], 'sdpa')
    """
    from kvpolicy.huggingface.attention.points import attention_points, wrapped
    from kvpolicy.huggingface.model.config import decoder_config

    def telling(own: Callable[..., Any]) -> Callable[..., Any]:
        def attention(module: nn.Module, query: Tensor, *args: Any, **kwargs: Any) -> Any:
            listener(module, query.detach())
            return own(module, query, *args, **kwargs)

        return attention

    with wrapped(attention_points(model.modules(), decoder_config(model)), telling):
        yield


@contextmanager
def blocks_heard(
    blocks: list[nn.Module], listener: Callable[[int, Tensor, Tensor], None]
) -> Iterator[None]:
    """Tell `listener` what each attention block was given and what it put out, by its number.

    >>> from kvpolicy.testing import tiny_model
    >>> import torch
    >>> model, shapes = tiny_model(), []
    >>> blocks = [layer.self_attn for layer in model.model.layers]
    >>> with blocks_heard(blocks, lambda n, given, out: shapes.append((n, list(out.shape)))):
    ...     _ = model(torch.tensor([[1, 2, 3]]))
    >>> shapes
    [(0, [1, 3, 32]), (1, [1, 3, 32])]
    """

    def after(number: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            out = output[0] if isinstance(output, tuple) else output
            listener(number, hidden_states(args, kwargs).detach(), out.detach())

        return hook

    with ExitStack() as hooks:
        for number, block in enumerate(blocks):
            handle = block.register_forward_hook(after(number), with_kwargs=True)
            hooks.callback(handle.remove)
        yield


@contextmanager
def outputs_heard(model: PreTrainedModel) -> Iterator[list[list[Tensor]]]:
    """Give what each attention block put out for the last token of each forward, by layer.

    An entry has the shape [B, 1, M].

    >>> from kvpolicy.testing import tiny_model
    >>> import torch
    >>> model = tiny_model()
    >>> with outputs_heard(model) as layers:
    ...     _ = model(torch.tensor([[1, 2, 3]])), model(torch.tensor([[4]]))
    >>> [[list(out.shape) for out in layer] for layer in layers]
    [[[1, 1, 32], [1, 1, 32]], [[1, 1, 32], [1, 1, 32]]]
    """
    from kvpolicy.huggingface.model.architectures import ATTENTION

    blocks = [
        module
        for module in model.modules()
        if ATTENTION in type(module).__name__
        and isinstance(getattr(module, "layer_idx", None), int)
    ]
    layers: list[list[Tensor]] = [[] for _ in blocks]
    with blocks_heard(blocks, lambda number, _, out: layers[number].append(out[:, -1:])):
        yield layers


@contextmanager
def blocks_given(blocks: list[nn.Module], inputs: Callable[[int], Tensor]) -> Iterator[None]:
    """Give each attention block the hidden states of `inputs`, by its number, for its own."""

    def before(number: int) -> Callable[..., tuple[Any, Any]]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
            if "hidden_states" in kwargs:
                return args, kwargs | {"hidden_states": inputs(number)}
            return (inputs(number), *args[1:]), kwargs

        return hook

    with ExitStack() as hooks:
        for number, block in enumerate(blocks):
            handle = block.register_forward_pre_hook(before(number), with_kwargs=True)
            hooks.callback(handle.remove)
        yield


def hidden_states(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return what an attention block was given, by name or as its first argument."""
    states: Tensor = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    return states
