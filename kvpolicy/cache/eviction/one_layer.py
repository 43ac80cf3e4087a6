"""Evict one layer that an observation shows, by the flow that layers of models run."""

from __future__ import annotations

import torch

from kvpolicy.cache.attention.keys import attended
from kvpolicy.cache.eviction.evict import evict
from kvpolicy.cache.eviction.shown import Shown
from kvpolicy.cache.eviction.spans import BatchSpans
from kvpolicy.cache.memory.contents import Contents
from kvpolicy.observation.logits import Logits
from kvpolicy.observation.observation import Observation
from kvpolicy.observation.position_bias import PositionBias
from kvpolicy.pipeline.notes import accumulated
from kvpolicy.pipeline.pipeline import Pipeline
from kvpolicy.stages.selection import Selection


def evicted(
    policy: Pipeline, observation: Observation, spans: BatchSpans | None = None
) -> Contents:
    """Return what a layer holds after it was evicted; the observation shows what it held before.

    `spans` are those of the text of its rows.

    >>> import kvpolicy
    >>> from kvpolicy.testing import observation
    >>> layer = observation(positions=100)
    >>> evicted(kvpolicy.recipe("snapkv", budget=40), layer).positions.shape
    torch.Size([1, 2, 40])

    Raises InvalidComponentError and ComponentFailedError as the stages of a policy do.
    """
    contents = Contents.of(observation.keys, observation.values)
    noted = observation.noted
    if observation.state is None:
        contents.state, noted = accumulated(policy, observation)
    else:
        contents.state = observation.state
    contents.slots.noted = None if noted is None or spans is not None else list(noted)
    if observation.seen != observation.length:
        batch = observation.keys.shape[0]
        contents.slots.replace(observation.positions, [observation.length] * batch)
        contents.slots.seen = [observation.seen] * batch
    shown = Shown(
        queries=observation.queries,
        logits=Logits(
            scaling=observation.scaling,
            softcap=observation.softcap,
            sinks=observation.sink_logits,
            bias=_by_token(observation),
        ),
        kv_heads=observation.keys.shape[1],
        layer=observation.layer,
        num_layers=observation.num_layers,
        output_weight=observation.output_weight,
        rotary=observation.rotary,
        shard=observation.shard,
        readers=observation.readers,
        spans=spans,
    )
    found = evict(policy, contents, attended(contents), shown)
    return contents if found is None else found


def _by_token(observation: Observation) -> PositionBias | None:
    """Return the bias of an observation, by tokens; every position is its own token."""
    if observation.position_bias is None:
        return None
    bias, heads = observation.position_bias, observation.queries.shape[1]
    tokens = observation.positions.repeat_interleave(heads // observation.keys.shape[1], 1)
    table = bias.new_zeros(*bias.shape[:3], observation.seen)
    table.scatter_(3, tokens[:, :, None].expand_as(bias), bias)
    return PositionBias(table=table, read=observation.seen)


def selected(policy: Pipeline, observation: Observation) -> Selection:
    """Return the rows of a layer that survive an eviction.

    >>> import kvpolicy
    >>> from kvpolicy.testing import observation
    >>> selected(kvpolicy.recipe("streamingllm", budget=6), observation(positions=9)).indices[0, 0]
    tensor([0, 1, 2, 3, 7, 8])

    Raises what `evicted` raises.
    """
    kept = evicted(policy, observation).positions.to(observation.positions.device)
    lengths = (kept >= 0).sum(-1)
    before = observation.positions.contiguous()
    rows = torch.searchsorted(before, kept.to(before.dtype).contiguous())
    # Shorter heads are padded on the left in a cache, and filled up on the right in a selection.
    rows = rows.masked_fill(kept < 0, observation.length).sort(-1).values
    return Selection(indices=rows, lengths=lengths)
