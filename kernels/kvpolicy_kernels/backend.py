"""The choice of what runs an operation: its PyTorch reference or its Triton kernel.

The environment variable KVPOLICY_KERNELS decides:

- `auto`, the default: the kernel on a GPU, the reference elsewhere;
- `reference`: always the reference;
- `triton`: always the kernel. Without a GPU it runs in Triton's interpreter, which is slow.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from kvpolicy_kernels.checks import require

VARIABLE = "KVPOLICY_KERNELS"
CHOICES = ("auto", "reference", "triton")

P = ParamSpec("P")
R = TypeVar("R")


class KernelFallbackWarning(UserWarning):
    """An operation runs in PyTorch although a kernel was wanted: the same numbers, more slowly."""


def implementation(door: Callable[P, R], *tensors: Tensor) -> Callable[P, R]:
    """Return the function that runs on these tensors: the room's kernel or its reference.

    `door` is the public function. The modules `reference` and `kernel` of its room have functions
    of the same name and signature. `kernel.unsupported(*tensors)` returns why the kernel cannot
    take the tensors, or None. If it cannot, the reference runs, and a KernelFallbackWarning says so
    once for each reason. Kernels have no gradients: where they are needed, the reference runs.

    Raises ValueError if KVPOLICY_KERNELS has an unknown value, or asks for a kernel that cannot run
    here.
    """
    if _wants_kernel(tensors) and not _needs_gradients(tensors):
        kernel = import_module(f"{door.__module__}.kernel")
        reason = kernel.unsupported(*tensors)
        if reason is None:
            return _function(kernel, door)
        _warn_once(door.__name__, reason)
    return _function(_reference_of(door.__module__), door)


@cache
def _reference_of(room: str) -> ModuleType:
    return import_module(f"{room}.reference")


def _function(module: ModuleType, door: Callable[P, R]) -> Callable[P, R]:
    found: Callable[P, R] = getattr(module, door.__name__)
    return found


def _wants_kernel(tensors: tuple[Tensor, ...]) -> bool:
    choice = os.environ.get(VARIABLE, "auto")
    # Every operation asks this: the message is not written unless it is needed.
    if choice not in CHOICES:
        raise ValueError(f"{VARIABLE} must be one of {', '.join(CHOICES)}, not {choice!r}")
    if choice == "reference" or (choice == "auto" and not tensors[0].is_cuda):
        return False
    on_gpu = all(tensor.is_cuda for tensor in tensors)
    if choice == "auto" and not on_gpu:
        return False
    if not _has_triton():
        require(
            choice == "auto",
            f"{VARIABLE} is triton, but Triton is not installed. Install kvpolicy[kernels].",
        )
        _warn_once("kvpolicy_kernels", "Triton is not installed. Install kvpolicy[kernels]")
        return False
    require(
        on_gpu or os.environ.get("TRITON_INTERPRET") == "1",
        f"{VARIABLE} is triton, but not all tensors are on a GPU: "
        f"{', '.join(sorted({tensor.device.type for tensor in tensors}))}. Set it to auto, or set "
        "TRITON_INTERPRET=1 to run kernels in Triton's interpreter (slow).",
    )
    return True


def _needs_gradients(tensors: tuple[Tensor, ...]) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def _warn_once(operation: str, reason: str) -> None:
    warnings.warn(
        f"{operation} runs in PyTorch, without its Triton kernel: {reason}.",
        KernelFallbackWarning,
        stacklevel=4,
    )
