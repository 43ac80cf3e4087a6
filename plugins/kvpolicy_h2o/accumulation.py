"""Column sums of the attention matrix, which is never stored."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from kvpolicy.stages.observation import Observation
from kvpolicy_kernels import window_attention
from kvpolicy_kernels.chunking import rows_per_block


def causal_sums(
    observation: Observation, queries: Float[Tensor, "B heads T D"]
) -> Float[Tensor, "B heads S"]:
    """Sum the attention of queries that are the last T positions, each blind to later ones.

    >>> layer = Observation(queries=torch.zeros(1, 1, 2, 1), keys=torch.zeros(1, 1, 2, 1),
    ...                     values=torch.zeros(1, 1, 2, 1))
    >>> causal_sums(layer, layer.queries)
    tensor([[[1.5000, 0.5000]]])
    """
    return window_attention(
        queries,
        observation.keys,
        torch.ones(queries.shape[2], dtype=torch.float32, device=queries.device),
        scaling=observation.scaling,
        softcap=observation.softcap,
    ).attention


def unmasked_sums(
    observation: Observation, queries: Float[Tensor, "B H T D"]
) -> Float[Tensor, "B H S"]:
    """Sum the attention of queries that each see every position, a bounded block at a time.

    >>> layer = Observation(queries=torch.zeros(1, 1, 2, 1), keys=torch.zeros(1, 1, 2, 1),
    ...                     values=torch.zeros(1, 1, 2, 1))
    >>> unmasked_sums(layer, layer.queries)
    tensor([[[1., 1.]]])
    """
    shape, device = (*queries.shape[:2], observation.length), queries.device
    total = torch.zeros(shape, dtype=torch.float32, device=device)
    for block in queries.split(rows_per_block(total.numel(), device), dim=2):
        # A window's last query sees all there is: each becomes the only query of a head.
        alone = block.flatten(1, 2).unsqueeze(2)
        total += causal_sums(observation, alone).unflatten(1, block.shape[1:3]).sum(2)
    return total
