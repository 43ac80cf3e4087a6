"""Bounds of time and memory on a GPU, computed from the shapes of a model and a card's ceilings.

Nothing here is measured. Linear layers and attention cost their products; decoding costs its reads.
"""

from __future__ import annotations

import attrs

from benchmarks.layers import LayerShape

GB = 1e9


@attrs.frozen(kw_only=True)
class Card:
    """The ceilings of a GPU."""

    name: str
    flops: float
    """For each second: dense products in bfloat16."""
    bandwidth: float
    """Bytes read and written in each second."""


@attrs.frozen(kw_only=True)
class Shape(LayerShape):
    """The sizes of a decoder in bfloat16."""

    name: str
    parameters: float
    vocabulary: int
    layers: int = 32
    mlp_dim: int = 14_336

    @property
    def layer_parameters(self) -> int:
        """The weights of one layer's linear maps."""
        attention = 2 * self.model_dim * (self.heads + self.kv_heads) * self.dim
        return attention + 3 * self.model_dim * self.mlp_dim

    @property
    def kv_bytes(self) -> int:
        """Bytes of one position's keys and values in all layers."""
        return 2 * self.layers * self.kv_heads * self.dim * 2


H200 = Card(name="H200", flops=790e12, bandwidth=4.3e12)
LLAMA = Shape(name="Llama-3.1-8B", parameters=8.03e9, vocabulary=128_256)
MISTRAL = Shape(name="Mistral-7B", parameters=7.24e9, vocabulary=32_000)


def linear_flops(shape: Shape, length: int) -> float:
    """Return the operations of all linear layers for a prompt."""
    return 2.0 * shape.layers * shape.layer_parameters * length


def attention_flops(shape: Shape, length: int) -> float:
    """Return the operations of causal attention: half of all pairs, two products each."""
    return 2.0 * shape.layers * shape.heads * shape.dim * length**2


def prefill_seconds(shape: Shape, length: int, card: Card) -> float:
    """Return the least time that reading a prompt takes.

    >>> round(prefill_seconds(LLAMA, 131_072, H200), 2)
    8.02
    """
    return (linear_flops(shape, length) + attention_flops(shape, length)) / card.flops


def attention_share(shape: Shape, length: int) -> float:
    """Return f, the share of attention in a prompt's operations."""
    attention = attention_flops(shape, length)
    return attention / (attention + linear_flops(shape, length))


def scoring_share(shape: Shape, length: int) -> float:
    """Return the operations of ReST-KV's exact scores, as a share of the prompt's.

    For each query head and position they are the window's logits twice, its output, and R (o - v).

    >>> f"{scoring_share(LLAMA, 4096):.2%}"
    '0.39%'
    """
    window, dim = 6 * shape.window * shape.dim, 2 * shape.dim**2 + 3 * shape.dim
    scoring = shape.layers * shape.heads * length * (window + dim)
    return scoring / (linear_flops(shape, length) + attention_flops(shape, length))


def decode_seconds(shape: Shape, held: int, card: Card, *, batch: int = 1) -> float:
    """Return the least time of a decode step, which reads all weights, keys and values once.

    >>> f"{1000 * decode_seconds(LLAMA, 131_072, H200):.2f}"
    '7.49'
    """
    head = shape.vocabulary * shape.model_dim
    weights = 2 * (shape.layers * shape.layer_parameters + head)
    return (weights + batch * held * shape.kv_bytes) / card.bandwidth


def gather_seconds(shape: Shape, kept: int, card: Card) -> float:
    """Return the least time to compact one layer: to read and write what is kept."""
    return 2 * kept * shape.kv_bytes / shape.layers / card.bandwidth


def peak_bytes(
    shape: Shape, length: int, *, kept: int | None = None, mlp_chunk: int | None = None
) -> float:
    """Return the bytes at the peak of a prompt: weights, keys and values, and temporaries.

    With `kept` all layers but one are evicted; the last one is evicted before its MLP. The MLP has
    the most temporaries: for each token three tensors of its own size and three of the model's.
    With the MLP, norms and the rotary embedding in chunks of tokens, attention has the most.
    """
    kv = 2 * shape.kv_heads * shape.dim
    held = (length if kept is None else kept) * shape.kv_bytes
    of_mlp = 2.0 * 3 * (min(length, mlp_chunk or length) * shape.mlp_dim + length * shape.model_dim)
    # The residual, its norm, queries, and the output before and after its projection.
    of_attention = 2.0 * length * (3 * shape.model_dim + 2 * shape.heads * shape.dim)
    one_layer = 0.0 if kept is None else 2.0 * length * kv
    return 2 * shape.parameters + held + max(of_mlp, of_attention + one_layer)


def sparse_bound(share: float, density: float) -> float:
    """Return how many times faster a prompt can be if attention computes this share of its pairs.

    >>> round(sparse_bound(0.71, 0.15), 1)
    2.5
    """
    return 1 / (1 - share + share * density)
