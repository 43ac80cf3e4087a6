"""How far eviction moves a model from its full cache, measured on any model.

    from kvpolicy.evaluation.measures.reconstruction import reconstruction_error

    errors = reconstruction_error(model, policy, prompt_ids, next_ids)      # one for each layer

`record` and `token_errors` are its two halves, for many policies on the same text.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.evaluation.recording import Recording, record
from kvpolicy.evaluation.recording.listening import blocks_given, blocks_heard
from kvpolicy.evaluation.recording.read_once import ReadOnce
from kvpolicy.huggingface.cache_argument import handed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from kvpolicy.huggingface.cache import PolicyCache
    from kvpolicy.policy import Policy

__all__ = ["Recording", "reconstruction_error", "record", "token_errors"]


def reconstruction_error(
    model: PreTrainedModel,
    policy: Policy,
    prompt: Int[Tensor, "B T"],
    continuation: Int[Tensor, "B F"],
    *,
    propagate: bool = False,
) -> Float[Tensor, " layers"]:
    """Return how much each layer's attention output is off, for tokens that follow a prompt.

    ||y - y_full|| / ||y_full|| with y what an attention block puts out, behind its output
    projection, averaged over the continuation's tokens and the prompts. The tokens are read one by
    one, as in decoding: a policy with `every` evicts meanwhile. Only layers that evict are counted.

    Each layer is judged by itself: it is given the hidden states of the full cache's run, so that
    errors do not add up over layers. With `propagate` it gets those of the layer before.

    Prompts are equally long, without padding. Raises what `record` and `policy.cache` raise.

    >>> import kvpolicy
    >>> from kvpolicy.testing import tiny_model
    >>> ids = torch.arange(1, 65)[None]
    >>> policy = kvpolicy.recipe("streamingllm", budget=16)
    >>> errors = reconstruction_error(tiny_model(), policy, ids[:, :60], ids[:, 60:])
    >>> errors.shape, bool((errors > 0).all())
    (torch.Size([2]), True)
    """
    full = record(model, prompt, continuation)
    return token_errors(model, policy, full, propagate=propagate).mean((1, 2))


@torch.no_grad()
def token_errors(
    model: PreTrainedModel,
    policy: Policy,
    full: Recording,
    *,
    propagate: bool = False,
    reader: ReadOnce | None = None,
) -> Float[Tensor, "layers B F"]:
    """Return the errors of `reconstruction_error` for each layer, prompt and token.

    `full` is what `record` took of the same model. A `reader` of that model reads its prompt once
    for many policies.

    >>> import kvpolicy
    >>> from kvpolicy.testing import tiny_model
    >>> model, ids = tiny_model(), torch.arange(1, 65)[None]
    >>> full = record(model, ids[:, :60], ids[:, 60:])
    >>> token_errors(model, kvpolicy.recipe("streamingllm", budget=64), full).abs().max()
    tensor(0.)
    """
    with policy.cache(model) as cache:
        (reader or ReadOnce(model)).read(cache, full.prompt)
        return errors_of_continuation(model, cache, full, propagate=propagate)


@torch.no_grad()
def errors_of_continuation(
    model: PreTrainedModel, cache: PolicyCache, full: Recording, *, propagate: bool = False
) -> Float[Tensor, "layers B F"]:
    """Return what `token_errors` does, of a cache that has read the prompt; it reads the rest."""
    blocks = [model.get_submodule(layer.block) for layer in full.layers]
    outputs: list[list[Tensor]] = [[] for _ in blocks]
    with blocks_heard(blocks, lambda place, _, out: outputs[place].append(out)):
        for step, token in enumerate(full.continuation.split(1, dim=1)):
            given = [layer.inputs[:, step : step + 1] for layer in full.layers]
            with nullcontext() if propagate else blocks_given(blocks, given.__getitem__):
                model.base_model(input_ids=token, **handed(cache, to=model.base_model))
    return torch.stack(
        [
            relative_error(torch.cat(rows, dim=1), layer.outputs)
            for rows, layer in zip(outputs, full.layers, strict=True)
        ]
    )


def error_of_outputs(
    found: Sequence[Sequence[Float[Tensor, "B one M"]]],
    expected: Sequence[Sequence[Float[Tensor, "B one M"]]],
    *,
    last: int,
) -> float | None:
    """Return how far attention outputs are off, on average over layers and the `last` tokens.

    Both are what `outputs_heard` gave. None if no layer was heard so often.
    """
    errors = [
        relative_error(torch.cat(list(mine[-last:]), 1), torch.cat(list(theirs[-last:]), 1)).mean()
        for mine, theirs in zip(found, expected, strict=True)
        if min(len(mine), len(theirs)) >= last
    ]
    return float(torch.stack(errors).mean()) if errors else None


def relative_error(
    found: Float[Tensor, "*lead M"], expected: Float[Tensor, "*lead M"]
) -> Float[Tensor, "*lead"]:
    """Return ||found - expected|| / ||expected||, in float32.

    >>> relative_error(torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0]))
    tensor(0.2000)
    """
    expected = expected.float()
    size = torch.linalg.vector_norm(expected, dim=-1)
    off = torch.linalg.vector_norm(found.float() - expected, dim=-1)
    relative: Tensor = off / size.clamp_min(torch.finfo(torch.float32).tiny)
    return relative
