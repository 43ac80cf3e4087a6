"""Tensor parallelism: each process has some heads of every layer, and they decide together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import attrs
import torch
from jaxtyping import Float
from torch import Tensor, distributed
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import PreTrainedConfig, PreTrainedModel

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.huggingface.model.architectures import KEY_PROJECTIONS
from kvpolicy.observation.shard import Shard

_local: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


@attrs.frozen(eq=False)
class Ranks:
    """The processes that share a model by tensor parallelism, and which of them this is."""

    group: Any = attrs.field(repr=False)
    size: int
    index: int
    device_type: str

    def exchange(self, mine: Tensor) -> Sequence[Tensor]:
        """Return this tensor of every process, on its device; they must be of one shape."""
        # NCCL sends from the accelerator only.
        there = mine if mine.device.type == self.device_type else mine.to(self.device_type)
        sent = there.contiguous()
        found = [torch.empty_like(sent) for _ in range(self.size)]
        distributed.all_gather(found, sent, group=self.group)
        return [each.to(mine.device) for each in found]


class Here(NamedTuple):
    """What of a layer is in this process; `shard` is None if that is all of its heads."""

    shard: Shard | None
    output_weight: Float[Tensor, "M columns"] | None


def ranks_of(model: PreTrainedModel, config: PreTrainedConfig) -> Ranks | None:
    """Return the processes that share a model; None if it is in this one alone.

    Raises UnsupportedModelError for what is not tensor parallelism by transformers, or whose heads
    cannot be shared out evenly.
    """
    size = getattr(model, "tp_size", None) or 1
    mesh = getattr(model, "_device_mesh", None)
    if size == 1 or mesh is None:
        _refuse_foreign_shards(model)
        return None
    named = "tp" in (mesh.mesh_dim_names or ())
    if mesh.size() != size or (mesh.ndim > 1 and not named):
        raise UnsupportedModelError(
            f"{type(model).__name__} is spread over a mesh of {mesh.size()} processes, of which "
            f"{size} share its heads: beside tensor parallelism no other kind is served. Use "
            'DistributedConfig(tp_plan="auto") alone.'
        )
    _check_even(model, config, size)
    group = mesh.get_group("tp") if named else mesh.get_group()
    return Ranks(group, size, distributed.get_rank(group), mesh.device_type)


def here(
    ranks: Ranks | None,
    weight: Float[Tensor, "M columns"] | None,
    config: PreTrainedConfig,
    *,
    heads: int,
    value_dim: int,
) -> Here:
    """Say which of a layer's query heads the `heads` are that attention was called with.

    Their columns of the output projection are shown with them. Raises UnsupportedModelError if
    they are neither all nor an equal share.
    """
    if ranks is None:
        return Here(None, weight)
    total = config.num_attention_heads
    if weight is not None and _is_spread(weight):
        total = weight.shape[1] // value_dim
    mine = None if weight is None else _local_part(weight)
    if heads == total:
        if mine is not None and mine.shape[1] < heads * value_dim:
            # Each process computes all heads, and is to see all columns.
            mine = torch.cat(list(ranks.exchange(mine)), dim=1)
        return Here(None, mine)
    columns = heads * value_dim if mine is None else mine.shape[1]
    if heads * ranks.size != total or columns != heads * value_dim:
        raise UnsupportedModelError(
            f"a process has {heads} of the {total} query heads of a layer, and {columns} columns "
            f"of its output projection: no equal share of {ranks.size} processes."
        )
    return Here(Shard(first_head=ranks.index * heads, exchange=ranks.exchange), mine)


def _is_spread(tensor: Any) -> bool:
    """Whether a tensor is a DTensor, without loading what defines it."""
    return hasattr(tensor, "device_mesh")


def _refuse_foreign_shards(model: PreTrainedModel) -> None:
    for name, weight in model.named_parameters():
        if _is_spread(weight) and any(each.is_shard(1) for each in weight.placements):  # type: ignore[attr-defined]
            raise UnsupportedModelError(
                f"{name} of {type(model).__name__} is spread over processes, but not by "
                "transformers, so the cache cannot know who has which heads. Load the model with "
                'DistributedConfig(tp_plan="auto").'
            )


def _check_even(model: PreTrainedModel, config: PreTrainedConfig, size: int) -> None:
    """Refuse key/value heads that would be cut: transformers shares out columns, not heads."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    if not isinstance(kv_heads, int) or kv_heads % size == heads % size == 0:
        return
    # Other styles give every process the keys of all heads.
    if any(
        name.rpartition(".")[2] in KEY_PROJECTIONS and style == "colwise"
        for name, style in (model.tp_plan or {}).items()
    ):
        raise UnsupportedModelError(
            f"{type(model).__name__} has {heads} query and {kv_heads} key/value heads, which "
            f"{size} processes cannot share evenly. Use a number of processes that divides both."
        )


def _local_part(weight: Float[Tensor, "M columns"]) -> Float[Tensor, "M local"]:
    """Return this process's columns, as the same tensor each time: factors are remembered by it."""
    if not _is_spread(weight):
        return weight
    local: Tensor = weight.detach().to_local()  # type: ignore[attr-defined]
    known: Tensor | None = _local.get(weight)
    if known is None or known.data_ptr() != local.data_ptr() or known.shape != local.shape:
        known = _local[weight] = local
    return known
