"""What a policy must know of each attention layer, read once when the weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from jaxtyping import Float
from torch import Tensor, nn

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.observation.observation import Observation
from kvpolicy.observation.rotary import Rotary
from kvpolicy.observation.shard import Shard
from kvpolicy.pipeline.capabilities import ChecksModel, ModelFacts, needs_of
from kvpolicy.pipeline.checks import at_work
from kvpolicy.pipeline.pipeline import Pipeline
from kvpolicy.vllm.projection import output_weight
from kvpolicy.vllm.ranks import rank_count, shard_of
from kvpolicy.vllm.rotary import rotary_of


@attrs.frozen(kw_only=True, eq=False)
class LayerFacts:
    """One attention layer: which of `num_layers` it is, and how it computes."""

    index: int
    num_layers: int
    scaling: float
    softcap: float | None = None
    sinks: Float[Tensor, " H"] | None = None
    output_weight: Float[Tensor, "M columns"] | None = None
    rotary: Rotary | None = None
    shard: Shard | None = None

    def observation(
        self,
        queries: Float[Tensor, "W H D"],
        keys: Float[Tensor, "S N D"],
        values: Float[Tensor, "S N Dv"],
    ) -> Observation:
        """Return what the layer shows when a prompt ends."""
        return Observation(
            queries=queries.transpose(0, 1)[None],
            keys=keys.transpose(0, 1)[None],
            values=values.transpose(0, 1)[None],
            layer=self.index,
            num_layers=self.num_layers,
            scaling=self.scaling,
            softcap=self.softcap,
            sink_logits=self.sinks,
            output_weight=self.output_weight,
            rotary=self.rotary,
            shard=self.shard,
        )


def facts_of(
    policy: Pipeline, model: nn.Module, layers: Mapping[str, Any]
) -> dict[str, LayerFacts]:
    """Return the facts of every attention layer, by its name in vLLM.

    Raises UnsupportedModelError for layers that cannot be served exactly, and for what a part of
    the policy needs and the model does not show.
    """
    for name, layer in layers.items():
        _check_layer(name, layer)
    needs = {need for part in policy.parts.values() for need in needs_of(part)}
    paths = {id(module): path for path, module in model.named_modules()}
    found = {
        name: _facts(model.get_submodule(paths[id(layer)].rpartition(".")[0]), layer, at, needs)
        for at, (name, layer) in enumerate(layers.items())
    }
    found = {name: attrs.evolve(each, num_layers=len(layers)) for name, each in found.items()}
    _check_needs(policy, model, found)
    _check_parts(policy, model, layers, found)
    return found


def _check_layer(name: str, layer: Any) -> None:
    """Refuse a layer whose attention is more than causal attention to its own keys."""
    reasons = {
        "has a sliding window": layer.sliding_window is not None,
        "shares the keys of another layer": layer.kv_sharing_target_layer_name is not None,
        "adds a bias that grows with the distance (ALiBi)": _alibi(layer.impl) is not None,
        "is no decoder's": str(getattr(layer.attn_type, "value", layer.attn_type)) != "decoder",
        "stores rounded keys and values": str(layer.kv_cache_dtype).startswith(("fp8", "nvfp4")),
    }
    for reason, given in reasons.items():
        if given:
            raise UnsupportedModelError(
                f"attention layer {name} {reason}, so kvpolicy cannot evict from it exactly. Leave "
                "out kvpolicy for this model."
            )


def _alibi(impl: Any) -> Any:
    return getattr(impl, "alibi_slopes", None)


def _facts(attention: nn.Module, layer: Any, index: int, needs: set[str]) -> LayerFacts:
    impl = layer.impl
    columns = layer.num_heads * layer.head_size_v
    softcap = getattr(impl, "logits_soft_cap", None) or getattr(impl, "logits_softcap", None)
    weight = output_weight(attention, columns) if "output_weight" in needs else None
    rotary = rotary_of(attention, layer.num_heads, layer.head_size) if "rotary" in needs else None
    return LayerFacts(
        index=index,
        num_layers=1,
        scaling=float(impl.scale),
        softcap=float(softcap) if softcap else None,
        sinks=getattr(impl, "sinks", None),
        output_weight=weight,
        rotary=rotary,
        shard=shard_of(layer.num_heads),
    )


def _check_needs(policy: Pipeline, model: nn.Module, found: Mapping[str, LayerFacts]) -> None:
    """Refuse a part that computes with what some layer does not show."""
    for kind, part in policy.parts.items():
        for need in needs_of(part):
            for name, facts in found.items():
                if getattr(facts, need) is None:
                    raise UnsupportedModelError(
                        f"{policy.titles[kind]} computes with the {need.replace('_', ' ')} of each "
                        f"layer, but that of {name} of {type(model).__name__} cannot be read. Use "
                        "another scorer, such as 'snapkv'."
                    )


def _check_parts(
    policy: Pipeline, model: nn.Module, layers: Mapping[str, Any], found: Mapping[str, LayerFacts]
) -> None:
    """Let parts that work with some models only check this one."""
    first = next(iter(layers.values()))
    ranks = rank_count()
    facts = ModelFacts(
        name=type(model).__name__,
        layers=len(layers),
        heads=first.num_heads * ranks,
        kv_heads=first.num_kv_heads * ranks,
        has_rotary=all(each.rotary is not None for each in found.values()),
    )
    for kind, part in policy.parts.items():
        with at_work(policy.titles[kind]):
            if isinstance(part, ChecksModel):
                part.check_model(facts)
