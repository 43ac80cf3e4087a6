"""Which form of an operation runs: its PyTorch reference, or its Triton kernel.

`KVPOLICY_KERNELS` says so: `auto` (the default; kernels on a GPU, the reference elsewhere),
`reference`, or `triton` (kernels everywhere; without a GPU in Triton's interpreter).
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

from torch import Tensor

from kvpolicy_kernels.checks import require

VARIABLE = "KVPOLICY_KERNELS"
CHOICES = ("auto", "reference", "triton")

P = ParamSpec("P")
R = TypeVar("R")


class KernelFallbackWarning(UserWarning):
    """A GPU does without a Triton kernel: the same numbers, more slowly."""


def implementation(door: Callable[P, R], *tensors: Tensor) -> Callable[P, R]:
    """Return the function that runs on these tensors: the room's kernel or its reference.

    `door` is the public function. Its room's modules `reference` and `kernel` have functions of the
    same name and signature. `kernel.unsupported(*tensors)` returns why the kernel cannot take
    the tensors, or None. If it cannot, the reference runs, and the first time for each reason a
    KernelFallbackWarning says so.

    Raises ValueError if KVPOLICY_KERNELS is none of the choices, or asks for what cannot run here.
    """
    if _wants_kernel(tensors):
        kernel = import_module(f"{door.__module__}.kernel")
        reason = kernel.unsupported(*tensors)
        if reason is None:
            return _function(kernel, door)
        _warn_once(door.__name__, reason)
    return _function(import_module(f"{door.__module__}.reference"), door)


def _function(module: ModuleType, door: Callable[P, R]) -> Callable[P, R]:
    found: Callable[P, R] = getattr(module, door.__name__)
    return found


def _wants_kernel(tensors: tuple[Tensor, ...]) -> bool:
    choice = os.environ.get(VARIABLE, "auto")
    require(choice in CHOICES, f"{VARIABLE} must be one of {', '.join(CHOICES)}: {choice!r}")
    on_gpu = all(tensor.is_cuda for tensor in tensors)
    if choice == "reference" or (choice == "auto" and not on_gpu):
        return False
    if not _has_triton():
        require(
            choice == "auto",
            f"{VARIABLE}=triton, but Triton is not installed. Install kvpolicy[kernels].",
        )
        _warn_once("kvpolicy_kernels", "Triton is not installed (kvpolicy[kernels] brings it)")
        return False
    require(
        on_gpu or os.environ.get("TRITON_INTERPRET") == "1",
        f"{VARIABLE}=triton, but not all tensors are on a GPU: "
        f"{', '.join(sorted({tensor.device.type for tensor in tensors}))}. Without one, kernels "
        "run in Triton's interpreter only (TRITON_INTERPRET=1, slow); else use auto.",
    )
    return True


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
