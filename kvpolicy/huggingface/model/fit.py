"""Whether a policy fits a model: asked when a cache is made, before any work is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from transformers import PreTrainedConfig, PreTrainedModel

from kvpolicy.budget import written
from kvpolicy.errors import UnsupportedModelError
from kvpolicy.huggingface.model.output_projection import check_readable
from kvpolicy.huggingface.model.rotary import rotaries
from kvpolicy.huggingface.model.shared_layers import all_readers
from kvpolicy.observation.rotary import Rotary
from kvpolicy.pipeline.capabilities import ChecksModel, ModelFacts
from kvpolicy.pipeline.checks import at_work
from kvpolicy.pipeline.pipeline import Pipeline


def fitting_rotaries(
    pipeline: Pipeline,
    model: PreTrainedModel,
    config: PreTrainedConfig,
    layers: list[int],
    readers: Mapping[int, list[int]],
) -> Sequence[Rotary | None]:
    """Return the rotary embedding of each layer that evicts, and let every part check the model.

    `readers` are the layers that attend with the keys of a layer, where there are several.
    It is looked for only if the policy renumbers slots, or a part needs it or checks models: others
    do not use it. Raises UnsupportedModelError where the policy needs what the model does not show,
    and what the parts raise.
    """
    checking = {
        kind: part for kind, part in pipeline.parts.items() if isinstance(part, ChecksModel)
    }
    needs = pipeline.needs
    if pipeline.target is not None and readers:
        raise UnsupportedModelError(
            f"layers of {type(model).__name__} share their keys and values, so that what is kept "
            f"changes several outputs, but an error target ({written(pipeline.target)}) is that of "
            "one layer. Give a number of positions."
        )
    if "output_weight" in needs:
        check_readable(model, all_readers(readers, layers), needs["output_weight"])
    if not checking and not pipeline.slot_positions and "rotary" not in needs:
        return [None] * len(layers)
    known = rotaries(model, config, layers)
    facts = ModelFacts(
        name=type(model).__name__,
        layers=len(layers),
        heads=config.num_attention_heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        has_rotary=all(each is not None for each in known),
        readers=max((len(readers.get(layer, [layer])) for layer in layers), default=1),
    )
    if pipeline.slot_positions and not facts.has_rotary:
        raise UnsupportedModelError(
            f"slot_positions=True turns keys to their place in the cache, but the rotary embedding "
            f"of some layers of {facts.name} is none, depends on the length of the prompt, or is "
            "not understood. Use slot_positions=False."
        )
    if "rotary" in needs and not facts.has_rotary:
        raise UnsupportedModelError(
            f"{needs['rotary']} computes with the rotary embedding of {facts.name}, which is none "
            "in some layers, depends on the length of the prompt, or is not understood. Use "
            "another scorer, such as 'snapkv'."
        )
    for kind, part in checking.items():
        with at_work(pipeline.titles[kind]):
            part.check_model(facts)
    return known
