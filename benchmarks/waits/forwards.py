"""The forwards that are counted: a prompt and a decoded token, of one row and of padded ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TypeAlias
from unittest.mock import patch

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

import kvpolicy
from benchmarks.waits.counts import KINDS, Counts, Kind
from benchmarks.waits.kernels import kernels_counted
from benchmarks.waits.pretended import Pretended, numbers_of, on_gpu, pretended, pretending
from kvpolicy.huggingface.cache_argument import handed
from kvpolicy.testing import tiny_model

LENGTH, BUDGET, PADDING = 300, 128, 20
TOKEN = 3
"""Which decoded token is counted. The first one makes room for those behind it."""
FEW, MANY = 2, 4
"""Layers of the two models that are compared."""

Called: TypeAlias = Mapping[Kind, Counter[tuple[str, str]]]
"""How often which line called for which operation, by kind."""


@attrs.frozen(kw_only=True)
class Batch:
    """How many rows are read, and how many columns of padding each has on the left."""

    name: str
    padding: tuple[int, ...] = (0,)

    def mask(self, length: int) -> Tensor | None:
        """Return the attention mask of a prompt and of the tokens behind it."""
        if not any(self.padding):
            return None
        columns = torch.arange(length)
        return Pretended((columns >= torch.tensor(self.padding)[:, None]).long())


BATCHES = (
    Batch(name="B = 1"),
    Batch(name="B = 2, unequal rows", padding=(0, PADDING)),
    Batch(name="B = 8, padded alike", padding=(PADDING,) * 8),
)


@attrs.frozen(kw_only=True)
class Cost:
    """What one layer costs, and what a forward costs beside its layers."""

    layer: float
    forward: float


def model_on_gpu(layers: int) -> PreTrainedModel:
    """Return a tiny model in bfloat16 whose weights are on a pretended GPU."""
    model = tiny_model(
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=16,
        hidden_size=64,
        max_position_embeddings=4096,
    )
    model.bfloat16()
    on_gpu(model)
    return model


@contextmanager
def counting() -> Iterator[Counts]:
    """Count what happens on the pretended GPU."""
    counts = Counts()
    own = F.scaled_dot_product_attention

    def attention(*args: object, **kwargs: object) -> object:
        return pretended(own(*numbers_of(args), **numbers_of(kwargs)))

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        # It chooses between kernels by the driver.
        stack.enter_context(patch.object(F, "scaled_dot_product_attention", attention))
        # A pretended weight is no plain tensor, but that of a plain projection.
        plain = "kvpolicy.huggingface.model.output_projection._is_plain"
        stack.enter_context(patch(plain, lambda projection: type(projection) is nn.Linear))
        stack.enter_context(kernels_counted(counts))
        stack.enter_context(pretending(counts.operation))
        yield counts


def called(model: PreTrainedModel, recipe: str, batch: Batch) -> dict[str, Called]:
    """Count the second prompt of a model, and a token behind it.

    The first prompt computes what is computed once for a model.
    """
    with counting() as counts:
        for _ in range(2):
            cache = kvpolicy.recipe(recipe, budget=BUDGET).cache(model)
            found = {"prompt": _counted(counts, model, cache, batch, 0)}
        for token in range(TOKEN):
            found["token"] = _counted(counts, model, cache, batch, LENGTH + token)
    kvpolicy.restore(model)
    return found


def costs(recipe: str, batch: Batch) -> dict[str, dict[Kind, Cost]]:
    """Return what a prompt and a decoded token cost: by the difference of two models."""
    few, many = (called(model_on_gpu(layers), recipe, batch) for layers in (FEW, MANY))
    return {
        phase: {
            kind: cost_of(few[phase][kind].total(), many[phase][kind].total()) for kind in KINDS
        }
        for phase in few
    }


def cost_of(few: int, many: int) -> Cost:
    """Return what a layer costs, and a forward beside it, by the counts of both models."""
    layer = (many - few) / (MANY - FEW)
    return Cost(layer=layer, forward=few - FEW * layer)


def _counted(
    counts: Counts, model: PreTrainedModel, cache: object, batch: Batch, before: int
) -> Called:
    generator = torch.Generator("cpu").manual_seed(before)
    count = 1 if before else LENGTH
    shape = (len(batch.padding), count)
    prompt = torch.randint(3, 100, shape, generator=generator, device="cpu")
    mask = batch.mask(before + count)
    counts.clear()
    model(Pretended(prompt), attention_mask=mask, **handed(cache, to=model), logits_to_keep=1)
    return {kind: Counter(counts.of[kind]) for kind in KINDS}
