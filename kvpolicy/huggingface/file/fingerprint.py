"""By what a file knows the model that it was saved with."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import nn
from transformers import PreTrainedModel

from kvpolicy.huggingface.model.devices import weights_present

_SAMPLES = 8
_TRANSIENT = ("transformers_version", "_name_or_path", "_attn_implementation", "dtype")
"""Entries of a configuration that do not change what the model computes."""


def fingerprint(model: PreTrainedModel) -> dict[str, str]:
    """Return the model's class, and digests of its configuration and of samples of its weights."""
    config = {
        name: value for name, value in model.config.to_dict().items() if name not in _TRANSIENT
    }
    weights = hashlib.sha256()
    for name, weight in model.named_parameters():
        weights.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        module, _, own_name = name.rpartition(".")
        weights.update(_samples(model.get_submodule(module), own_name))
    text = json.dumps(config, sort_keys=True, default=str)
    return {
        "class": type(model).__name__,
        "config": hashlib.sha256(text.encode()).hexdigest(),
        "weights": weights.hexdigest(),
    }


def _samples(module: nn.Module, name: str) -> bytes:
    """Return a few numbers of a weight; a weight on the host or on disk is read for it."""
    with weights_present(module):
        weight = getattr(module, name).detach()
        if weight.device.type == "meta" or not weight.numel():
            return b""
        places = torch.linspace(
            0, weight.numel() - 1, _SAMPLES, dtype=torch.float32, device=weight.device
        ).long()
        numbers: bytes = weight.reshape(-1)[places].float().cpu().numpy().tobytes()
        return numbers
