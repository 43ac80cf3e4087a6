"""What one module of a model computes with: its own tensors and its plain attributes."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedModel

from kvpolicy.huggingface.model.architectures import ROTARY_EMBEDDING, VARYING_ROTARY

PLAIN = (bool, int, float, complex, str, bytes, Enum, torch.dtype)

_MODULE = frozenset(vars(nn.Module()))
_OF_MODELS = frozenset({"name_or_path", "kernel_config", "loss_type", "hf_device_map"})
"""Attributes of whole models, beside private ones: where a model came from, and where it is."""

_WITHOUT_NUMBERS = frozenset(
    {
        "_attn_implementation",
        "_is_hf_initialized",
        "gradient_checkpointing",
        "mask_value",
        "persistent",
    }
)

_FOREIGN = sys.stdlib_module_names | {
    "accelerate",
    "bitsandbytes",
    "kvpolicy",
    "peft",
    "torch",
    "transformers",
    "triton",
}
"""Packages whose objects are not looked into: their modules give numbers and settings otherwise."""


@contextmanager
def weights_present(module: nn.Module) -> Iterator[bool]:
    """Have a module's own tensors where they have numbers; say whether they stay there.

    Tensors that accelerate keeps on the host or on disk are there until the block is left.
    """
    own = (*module._parameters.values(), *module._buffers.values())
    waits = any(each is not None and each.device.type == "meta" for each in own)
    if not waits or not hasattr(module, "_hf_hook"):
        yield True
        return
    from accelerate.utils import align_module_device

    with align_module_device(module):
        yield False


def tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and buffers of one module, without those of its children."""
    for own in (module._parameters, module._buffers):
        for name, tensor in own.items():
            if tensor is not None and not _is_noted(module, name):
                yield name, _before_reading(module, name, tensor)


def is_computed(module: nn.Module, name: str) -> bool:
    """Whether a tensor is a buffer that no checkpoint has: it follows from the configuration."""
    return name in module._non_persistent_buffers_set


def extra_state(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield what a module saves in a way of its own, such as packed weights."""
    kind = type(module)
    if kind._save_to_state_dict is not nn.Module._save_to_state_dict:
        saved: dict[str, Any] = {}
        module._save_to_state_dict(saved, "", True)
        yield from saved.items()
    elif kind.get_extra_state is not nn.Module.get_extra_state:
        yield "extra_state", module.get_extra_state()


def attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the attributes that a module was given, but for those that change no number."""
    for name, value in vars(module).items():
        if name in _MODULE or name in _WITHOUT_NUMBERS or name.startswith("_hf_"):
            continue
        if isinstance(module, PreTrainedModel) and (name in _OF_MODELS or name.startswith("_")):
            continue
        if not _is_noted(module, name):
            yield name, value


def tensor_attributes(tensor: Tensor) -> Iterator[tuple[str, Any]]:
    """Yield the attributes that a tensor was given, such as a scale."""
    if is_traceable_wrapper_subclass(tensor) or _package(type(tensor)) in _FOREIGN - {"torch"}:
        return
    for name, value in vars(tensor).items():
        if not name.startswith("_") and name not in _WITHOUT_NUMBERS:
            yield name, value


def name_of(value: Any) -> str:
    """Return by what a key or a member of a set is known in every process."""
    is_plain = isinstance(value, (*PLAIN, tuple))
    return repr(value) if is_plain else type(value).__qualname__


def is_container(value: Any) -> bool:
    """Whether a value is a mapping or a sequence."""
    return isinstance(value, Mapping | Sequence)


def inner(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a container, an array, or an object of another package has."""
    if isinstance(value, Mapping):
        yield from ((name_of(key), each) for key, each in value.items())
    elif isinstance(value, Sequence):
        yield from ((str(at), each) for at, each in enumerate(value))
    elif type(value).__module__ == "numpy" and hasattr(value, "tobytes"):
        yield "dtype", str(value.dtype)
        yield "shape", value.shape
        yield "digest", hashlib.sha256(value.tobytes()).hexdigest()
    elif isinstance(value, SimpleNamespace) or _is_known_by_its_attributes(value):
        slots = (each for kind in type(value).__mro__ for each in getattr(kind, "__slots__", ()))
        yield from ((name, getattr(value, name)) for name in slots if hasattr(value, name))
        yield from getattr(value, "__dict__", {}).items()


def _is_known_by_its_attributes(value: Any) -> bool:
    return not isinstance(value, type) and _package(type(value)) not in _FOREIGN


def _package(kind: type[Any]) -> str:
    return kind.__module__.partition(".")[0]


def _is_rotary(module: nn.Module) -> bool:
    return type(module).__name__.endswith(ROTARY_EMBEDDING)


def _is_noted(module: nn.Module, name: str) -> bool:
    """Whether a rotary module notes this while it reads, to save work."""
    return _is_rotary(module) and name.endswith(("max_seq_len_cached", "long_inv_freq"))


def _before_reading(module: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """Return a tensor; of rotary frequencies that grow with the text, those of a short one."""
    prefix, found, rest = name.partition("inv_freq")
    if not found or rest or not _is_rotary(module):
        return tensor
    kind = getattr(module, "rope_type", None)
    if isinstance(kind, dict):
        kind = kind.get(prefix.removesuffix("_"))
    original = getattr(module, f"{prefix}original_inv_freq", None)
    if kind not in VARYING_ROTARY or not isinstance(original, Tensor):
        return tensor
    usual = getattr(module, "max_seq_len_cached", 0)
    cached = getattr(module, f"{prefix}max_seq_len_cached", usual)
    has_grown = kind == "longrope" or cached > getattr(module, "original_max_seq_len", usual)
    return original if has_grown else tensor
