"""Every model of the installed transformers that reads images or sound with text, built tiny.

transformers is asked for its types. The default configuration of a type says which parts and sizes
it has; small values replace them, in the decoder as in `kvpolicy.exactness.architectures`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from kvpolicy.exactness.architectures import LARGEST, tiny_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

TEXT = 128
"""Ids below are text; ids of media and of other special tokens are above."""
VOCABULARY = 192
HIDDEN = 32

_SIZES: Mapping[str, Any] = {
    **dict.fromkeys(("hidden_size", "embed_dim", "d_model", "dim", "hidden_dim"), HIDDEN),
    **dict.fromkeys(("width", "projection_dim", "output_dim", "proj_dim"), HIDDEN),
    **dict.fromkeys(("out_hidden_size", "text_hidden_size", "projector_hidden_size"), HIDDEN),
    **dict.fromkeys(("intermediate_size", "mlp_dim", "encoder_ffn_dim", "ffn_dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "depth", "num_layers", "layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "num_heads", "encoder_attention_heads"), 2),
    **dict.fromkeys(("num_key_value_heads", "attention_heads"), 2),
    "head_dim": 16,
    "conf_num_attention_heads": 2,
    "conf_num_hidden_layers": 2,
    "fullatt_block_indexes": [0],
    "deepstack_visual_indexes": [0],
    "vision_feature_layer": -1,
    "vision_feature_layers": [-1, -2],
    "mm_tokens_per_image": 4,
    "initializer_range": 0.1,
    "downsample_hidden_size": 16,
    "num_position_embeddings": 64,
}
_PATCHES = 4
"""Patches along each side of an image."""


def media_types() -> list[str]:
    """Return every model type that reads images or sound with text, by transformers' lists."""
    from transformers.models.auto import modeling_auto

    names = ("IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM")
    lists = (getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES", {}) for name in names)
    return sorted({model_type for each in lists for model_type in each})


def tiny_media_config(model_type: str) -> PreTrainedConfig:
    """Return a small configuration of all parts of a type."""
    from transformers import AutoConfig, PreTrainedConfig

    found = AutoConfig.for_model(model_type)
    text = found.get_text_config(decoder=True)
    small: dict[str, Any] = _token_ids(found)
    for name in found.sub_configs:
        part = getattr(found, name, None)
        kind = found.sub_configs[name]
        if (
            part is None
            and name == "vision_config"
            and isinstance(vars(kind).get("model_type"), str)
        ):
            part = kind()
        if not isinstance(part, PreTrainedConfig):
            continue
        if part is text:
            small[name] = _small_text(part)
        else:
            small[name] = _small(part)
    if text is found:
        small |= _small_text(found)
    else:
        small |= {key: value for key, value in _small(found).items() if key not in small}
    side = small.get("vision_config", {}).get("image_size")
    if isinstance(side, int) and "image_grid_pinpoints" in found.to_dict():
        small["image_grid_pinpoints"] = [[side, side]]
    small.pop("model_type", None)
    return type(found)(**small)


def _small_text(text: PreTrainedConfig) -> dict[str, Any]:
    config = tiny_config(text.model_type, vocab_size=VOCABULARY)
    small = config.to_diff_dict() | {"vocab_size": VOCABULARY, "model_type": text.model_type}
    rotary = dict(getattr(text, "rope_parameters", None) or {})
    if not any(isinstance(each, dict) for each in rotary.values()):
        # The sections of time, height and width share the pairs of a head, where there are any.
        half = config.to_dict().get("head_dim", 8) // 2
        sections = [half - 2 * (half // 4), half // 4, half // 4]
        small["rope_parameters"] = rotary | {"mrope_section": sections}
    return small


def _small(part: PreTrainedConfig) -> dict[str, Any]:
    """Return small sizes of an encoder, and of the parts inside it."""
    from transformers import PreTrainedConfig

    own = part.to_dict()
    names = getattr(part, "attribute_map", {})
    found: dict[str, Any] = {}
    for name, size in _SIZES.items():
        stored = names.get(name, name)
        if stored in own and (isinstance(own[stored], type(size)) or own[stored] is None):
            found[stored] = size
    patch = own.get("patch_size")
    if isinstance(patch, int) and isinstance(own.get("image_size"), int):
        found["image_size"] = patch * _PATCHES
    for name in part.sub_configs:
        inner = getattr(part, name, None)
        if isinstance(inner, PreTrainedConfig):
            found[name] = _small(inner)
    return found | {"model_type": own["model_type"]}


def _token_ids(config: PreTrainedConfig) -> dict[str, int]:
    """Give each special token an id of its own above those of text."""
    names = [
        name
        for name, value in config.to_dict().items()
        if name.endswith(("_token_id", "_token_index"))
        and (isinstance(value, int) or (value is None and name.startswith(("image", "audio"))))
    ]
    return {name: TEXT + place for place, name in enumerate(names)}


def tiny_media_model(
    model_type: str, *, seed: int = 0, attn_implementation: str = "eager"
) -> PreTrainedModel:
    """Return a random model of a type: float32, on the CPU, in evaluation mode.

    Raises ValueError if even the smallest model of the type is not tiny, and what transformers
    raises if it cannot build the type.
    """
    from transformers.models.auto.modeling_auto import AutoModelForMultimodalLM

    config = tiny_media_config(model_type)
    with torch.device("meta"):
        size = AutoModelForMultimodalLM.from_config(config).num_parameters()
    if size > LARGEST:
        raise ValueError(f"the smallest {model_type} has {size:,} parameters")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForMultimodalLM.from_config(
            config, attn_implementation=attn_implementation, dtype=torch.float32
        )
        for weight in model.parameters():
            # A projector that begins with zeros would hide the media.
            if weight.dim() > 1 and not bool(weight.any()):
                torch.nn.init.normal_(weight, std=0.1)
    model.eval()
    return model
