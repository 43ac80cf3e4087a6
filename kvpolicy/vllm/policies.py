"""Which policies a serving engine runs exactly, and why it refuses the others."""

from __future__ import annotations

import torch

from kvpolicy.budget import written
from kvpolicy.errors import InvalidValueError
from kvpolicy.observation.observation import Observation
from kvpolicy.pipeline.capabilities import biases_rows, is_uneven
from kvpolicy.pipeline.pipeline import Pipeline
from kvpolicy.pipeline.repetition import repetition_of
from kvpolicy.stages.compaction import GatherCompactor

_LAYERS = 4
"""Layers of the model that allocators are tried on."""


def check_policy(policy: Pipeline) -> None:
    """Raise InvalidValueError, with the reason, for a policy that vLLM cannot run exactly."""
    if repetition_of(policy) is not None:
        raise InvalidValueError(
            f"{policy.titles['scorer']} has the model repeat its prompts, and vLLM reads each "
            "once. Use the scorer 'snapkv'."
        )
    if policy.every is not None:
        raise InvalidValueError(
            f"every={policy.every} evicts while decoding. In vLLM a policy evicts when a prompt "
            'ends only: add "every": null.'
        )
    if policy.slot_positions:
        raise InvalidValueError(
            "slot_positions=True turns keys anew at every token, but vLLM stores keys turned. Add "
            '"slot_positions": false.'
        )
    if policy.target is not None:
        raise InvalidValueError(
            f"an error target ({written(policy.target)}) gives heads and layers different numbers "
            "of positions, but they share the blocks of vLLM. Give a number of positions."
        )
    allocator = policy.titles["allocator"]
    if is_uneven(policy.allocator):
        raise InvalidValueError(
            f"{allocator} gives the heads of a layer different numbers of positions, but heads "
            "share the blocks of vLLM. Use the allocator 'uniform'."
        )
    across = policy.model_allocator or policy.sequential_allocator
    if across is not None or not _is_uniform(policy):
        raise InvalidValueError(
            f"{allocator} gives layers different numbers of positions, but all layers share the "
            "block table of vLLM. Use the allocator 'uniform'."
        )
    if biases_rows(policy.compactor):
        raise InvalidValueError(
            f"{policy.titles['compactor']} keeps rows with a bias of their logits, which the "
            "attention of vLLM does not take. Use the compactor 'gather'."
        )
    if type(policy.compactor) is not GatherCompactor:
        raise InvalidValueError(
            f"{policy.titles['compactor']} changes keys or values, but in vLLM the kept rows stay "
            "as they are. Use the compactor 'gather'."
        )


def _is_uniform(policy: Pipeline) -> bool:
    """Whether the allocator gives the whole budget to every layer and head; it is tried."""
    budget = policy.budget if isinstance(policy.budget, int) else 64
    for length in (budget + 1, 4 * budget):
        for layer in range(_LAYERS):
            shown = _layer(length, layer, budget)
            scores = torch.linspace(0, 1, length, dtype=torch.float32, device="cpu")
            counts = policy.allocate(scores.expand(1, 2, -1), shown)
            if not bool((counts == budget).all()):
                return False
    return True


def _layer(length: int, layer: int, budget: int) -> Observation:
    rows = torch.zeros((1, 1, 1, 1), dtype=torch.float32, device="cpu")
    return Observation(
        queries=rows.expand(1, 2, 1, 1),
        keys=rows.expand(1, 2, length, 1),
        values=rows.expand(1, 2, length, 1),
        layer=layer,
        num_layers=_LAYERS,
        budget=budget,
    )
