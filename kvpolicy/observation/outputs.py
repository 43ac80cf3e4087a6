"""The size of a layer's output for some queries: what a relative error is relative to."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from kvpolicy.observation.observation import Observation
from kvpolicy_kernels import Queries, query_outputs


def output_sizes(
    observation: Observation,
    queries: Queries,
    keys: Float[Tensor, "B N S D"],
    values: Float[Tensor, "B N S Dv"],
) -> Float[Tensor, "B M"]:
    """Return ||y_m|| for each query: y = sum_h W_h o_h over all heads of the layer.

    `keys` and `values` are those of the observation, or these and more. Without a known output
    projection, the size is that of all heads' outputs o_h together. A head that is shown alone is
    measured by its own output. All processes that share a layer must call this.

    >>> from kvpolicy.testing import observation
    >>> layer = observation(positions=5, window=1)
    >>> one = Queries(layer.queries, torch.ones(1, 1), torch.tensor([5]), scaling=layer.scaling)
    >>> output_sizes(layer, one, layer.keys, layer.values).shape
    torch.Size([1, 1])
    """
    outputs = query_outputs(queries, keys, values)
    weights = observation.head_weights
    if weights is None:
        squares = outputs.square().sum(-1)
        total = observation.of_all_heads(squares).sum(1).sqrt()
    else:
        own = torch.einsum("bhmd,hud->bmu", outputs, weights.to(outputs.dtype))
        whole = observation.of_all_heads(own[:, None]).sum(1)
        total = torch.linalg.vector_norm(whole, dim=-1)
    sizes: Tensor = total.clamp_min(torch.finfo(torch.float32).eps)
    return sizes
