"""Which form of an operation runs: its PyTorch reference, or its Triton kernel.

`KVPOLICY_KERNELS` says so: `auto` (the default; kernels on a GPU, the reference elsewhere),
`reference`, or `triton` (kernels everywhere; without a GPU in Triton's interpreter).
"""

from __future__ import annotations

import os
import warnings
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from torch import Tensor

from kvpolicy_kernels.checks import require

VARIABLE = "KVPOLICY_KERNELS"
CHOICES = ("auto", "reference", "triton")


class KernelFallbackWarning(UserWarning):
    """A GPU does without a Triton kernel: the same numbers, more slowly."""


def implementation(room: str, *tensors: Tensor) -> ModuleType:
    """Return the module of a room that is to run on these tensors: `kernel`, or `reference`.

    A kernel module says by `unsupported(*tensors)` why it does not take some tensors, or None; the
    reference then runs in its place, and the first time for each reason a warning says so.

    Raises ValueError if KVPOLICY_KERNELS is none of the choices, or asks for what cannot run here.
    """
    if not _wants_kernel(tensors):
        return import_module(f"{room}.reference")
    kernel = import_module(f"{room}.kernel")
    reason = kernel.unsupported(*tensors)
    if reason is None:
        return kernel
    _warn_once(room.rpartition(".")[2], reason)
    return import_module(f"{room}.reference")


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
