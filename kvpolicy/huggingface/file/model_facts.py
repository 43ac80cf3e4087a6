"""All that a model computes with, but for code: numbers, and the settings of its modules."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kvpolicy.errors import CacheFileError, told
from kvpolicy.huggingface.file.digests import Digests
from kvpolicy.huggingface.file.module_parts import (
    PLAIN,
    attributes,
    extra_state,
    inner,
    is_computed,
    is_container,
    name_of,
    tensor_attributes,
    tensors,
    weights_present,
)

SHORT = 1024
"""The most numbers of a table that is compared with a tolerance."""


@attrs.define(eq=False)
class ModelFacts:
    """Lines about every module of a model, in no particular order.

    Not among them are functions, such as forward hooks and replaced methods.
    """

    weights: list[str] = attrs.field(factory=list)
    """Parameters, buffers, and what else modules save."""
    settings: list[str] = attrs.field(factory=list)
    """Classes of modules, and their plain attributes: active adapters, scalings, and so on."""
    tables: dict[str, list[float]] = attrs.field(factory=dict)
    """Short tensors that no checkpoint has, such as rotary frequencies.

    Their last bits depend on the device that computed them.
    """
    _names: dict[int, str] = attrs.field(factory=dict)
    """Names of the modules and objects that were read."""
    _kept: list[Any] = attrs.field(factory=list)
    """The same modules and objects, so that no other one gets the id of one of them."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> ModelFacts:
        """Read all numbers and settings of a model.

        Raises CacheFileError for a tensor without numbers, such as one on the meta device.
        """
        found = cls()
        with Digests() as digests, torch.no_grad():
            found._read_module("model", model, digests)
        return found

    def _read_module(self, name: str, module: nn.Module, digests: Digests) -> None:
        if not self._is_new(name, module):
            return
        self.settings.append(_line(name, "class", type(module).__qualname__))
        with weights_present(module) as lasting:
            for each, tensor in tensors(module):
                loose = is_computed(module, each)
                self._read_tensor(f"{name}.{each}", tensor, digests, lasting=lasting, loose=loose)
                self._read_items(f"{name}.{each}", tensor_attributes(tensor), digests)
            self._read_items(f"{name} saves", extra_state(module), digests)
        self._read_items(name, attributes(module), digests)
        for each, child in module._modules.items():
            if child is not None:
                self._read_module(f"{name}.{each}", child, digests)

    def _read_items(
        self,
        name: str,
        items: Iterable[tuple[str, Any]],
        digests: Digests,
        within: tuple[int, ...] = (),
    ) -> None:
        for each, value in items:
            self._read_value(f"{name}.{each}", value, digests, within)

    def _read_value(self, name: str, value: Any, digests: Digests, within: tuple[int, ...]) -> None:
        """Add a plain attribute, or what a container or an object has that is in no other one."""
        if isinstance(value, PLAIN):
            self.settings.append(_line(name, type(value).__name__, repr(value)))
        elif isinstance(value, nn.Module):
            self._read_module(name, value, digests)
        elif isinstance(value, Tensor):
            self._read_tensor(name, value, digests, lasting=False, loose=True)
        elif isinstance(value, set | frozenset):
            self.settings.append(_line(name, "set", *sorted(map(name_of, value))))
        elif id(value) not in within:
            items = list(inner(value))
            is_read = is_container(value) or (items and self._is_new(name, value))
            self._read_items(name, items if is_read else (), digests, (*within, id(value)))

    def _read_tensor(
        self, name: str, tensor: Tensor, digests: Digests, *, lasting: bool, loose: bool
    ) -> None:
        if tensor.device.type == "meta":
            raise CacheFileError(
                f"a file belongs to the numbers of one model, and {name} is on the meta device, "
                "where there are none. Load the weights of the model first."
            )
        try:
            if loose and type(tensor) is Tensor and _is_short(tensor):
                self.tables[name] = tensor.double().flatten().tolist()
                self.weights.append(_line(name, str(tensor.dtype), *tensor.shape))
            else:
                self.weights.append(_line(name, digests.of(tensor, lasting=lasting)))
        except Exception as error:  # a tensor may be of any library
            raise CacheFileError(
                f"a file belongs to the numbers of one model, and those of {name}, a "
                f"{type(tensor).__name__}, cannot be read ({told(error)})."
            ) from error

    def _is_new(self, name: str, found: object) -> bool:
        """Note where an object is; one that was read before is not read again."""
        if id(found) in self._names:
            self.settings.append(_line(name, "is", self._names[id(found)]))
            return False
        self._names[id(found)] = name
        self._kept.append(found)
        return True


def _is_short(tensor: Tensor) -> bool:
    is_plain = tensor.layout == torch.strided and tensor.is_floating_point()
    return is_plain and tensor.numel() <= SHORT


def _line(*facts: object) -> str:
    return json.dumps(facts)
