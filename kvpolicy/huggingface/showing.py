"""What a layer shows to the policy of the attention calls that came with its keys."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from kvpolicy.cache.eviction.shown import Shown
from kvpolicy.cache.memory.contents import Contents
from kvpolicy.huggingface.model.output_projection import output_weight
from kvpolicy.huggingface.model.ranks import here
from kvpolicy.huggingface.readings import Reading, joined_logits
from kvpolicy.huggingface.session import Session


def shown_by(
    session: Session,
    layer: int,
    contents: Contents,
    readings: Sequence[Reading],
    queries: Float[Tensor, "B H Q D"],
    new_real: list[int] | None,
) -> Shown:
    """Return what the calls show; `queries` are those of all of them, by key/value head.

    `new_real` counts the real tokens of each row where padding stands before them. Raises
    UnsupportedModelError for calls that cannot be shown as one.
    """
    heads, needed, shard = contents.slots.heads, session.needs_output_weight, None
    if len(readings) == 1:
        logits = readings[0].logits
        weight = output_weight(readings[0].module, needed=needed, like=queries)
    else:
        logits = joined_logits(readings, heads)
        weight = session.weights.of(layer, readings, heads, needed=needed)
    if session.ranks is not None:
        shard, weight = here(
            session.ranks,
            weight,
            session.config,
            heads=queries.shape[1],
            value_dim=contents.values.buffer.shape[-1],
        )
    return Shown(
        layer=layer,
        num_layers=session.num_layers,
        kv_heads=heads,
        queries=queries,
        logits=logits,
        output_weight=weight,
        rotary=session.rotaries[layer],
        shard=shard,
        readers=len(readings),
        of_prompt=readings[0].count > 1,
        new_real=new_real,
        spans=session.spans,
    )
