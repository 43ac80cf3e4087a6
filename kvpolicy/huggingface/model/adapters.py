"""Models of PEFT: the transformers model that adapters change, and adapters that are refused."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from kvpolicy.errors import UnsupportedModelError

_READS_TWICE = "XLORA"
"""The type of adapter that runs the model before each forward, to choose among its adapters."""
_BY_ROW_OR_TOKEN = ("adapter_names", "alora_offsets")
"""What PEFT hands to the layers of one forward that are to use other adapters than the active."""


def plain_model(model: Any) -> Any:
    """Return the transformers model that the adapters of a PEFT model change; others as they are.

    It computes with the active adapters, and follows when another one is made active. Raises
    UnsupportedModelError for adapters that feed tokens or a cache of their own to the model.
    """
    if _is_of_peft(model) and (reason := _reason_against(model)) is not None:
        raise UnsupportedModelError(reason)
    return model_inside(model)


def model_inside(model: Any) -> Any:
    """Return the transformers model in a PEFT model, whatever its adapters do."""
    while _is_of_peft(model):
        base = model.base_model
        model = base if isinstance(base, PreTrainedModel) else base.model
    return model


def check_no_virtual_tokens(model: Any) -> None:
    """Raise UnsupportedModelError if PEFT is about to generate with prompt learning.

    PEFT then puts a method of its own into the model that it calls.
    """
    method = vars(model).get("prepare_inputs_for_generation")
    around = getattr(method, "__self__", None)
    if _is_of_peft(around) and (reason := _reason_against(around)) is not None:
        raise UnsupportedModelError(reason)


def check_one_adapter(projection: nn.Module) -> None:
    """Raise UnsupportedModelError if a projection computes each row or token by another adapter.

    PEFT says so in a hook of the projection, for one forward.
    """
    for hook in projection._forward_pre_hooks.values():
        for name in _BY_ROW_OR_TOKEN:
            if getattr(hook, "keywords", {}).get(name) is not None:
                raise UnsupportedModelError(
                    f"the output projection uses different adapters in one batch ({name}), so it "
                    "has no weight of its own that a policy could be shown. Read the rows of each "
                    "adapter apart, or use another scorer, such as 'snapkv'."
                )


def _is_of_peft(model: Any) -> bool:
    # Whoever has such a model has imported PEFT.
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, (peft.PeftModel, peft.PeftMixedModel))


def _reason_against(model: Any) -> str | None:
    """Return why the active adapters of a PEFT model are refused; None if they are served."""
    names = model.active_adapters
    for config in (model.peft_config[name] for name in names):
        kind = getattr(config.peft_type, "value", config.peft_type)
        if config.is_prompt_learning:
            return (
                f"{type(model).__name__} uses prompt learning ({kind}). It reads virtual tokens "
                "that no prompt shows, or brings a cache of its own, so a cache would count other "
                "tokens than the prompt has. Use an adapter that changes layers, such as LoRA, or "
                "generate without a policy."
            )
        if kind == _READS_TWICE:
            return (
                f"{type(model).__name__} uses {kind}, which runs the model before each forward to "
                "choose among its adapters, so the cache would read each token twice. Use one "
                "adapter, such as LoRA."
            )
    return None
