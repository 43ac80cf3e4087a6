"""Counts of what an operation makes the host of a GPU do, and whose line called for it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import attrs
import torch
import transformers
from torch import Tensor
from torch.utils._pytree import tree_leaves

import kvpolicy
from benchmarks.waits.pretended import Pretended, is_gpu

Kind: TypeAlias = Literal["launches", "waits", "copies"]
KINDS: tuple[Kind, ...] = get_args(Kind)

ROOT = str(Path(kvpolicy.__file__).parents[1]) + "/"
OURS = tuple(ROOT + folder for folder in ("kvpolicy/", "kernels/", "plugins/", "examples/"))
MODELS = str(Path(transformers.__file__).parent)
AROUND = tuple(
    f"{ROOT}kvpolicy/huggingface/{module}.py"
    for module in ("attention/call", "attention/mask_memo", "model/rotary_positions")
)
"""What is wrapped around functions of a model, and calls them: their operations are the model's."""

READS = {"_local_scalar_dense", "item", "equal", "is_nonzero"}
SIZED_BY_NUMBERS = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive"}
"""Operations whose result has a size that the host must read."""
NO_LAUNCH = {"detach", "alias", "lift_fresh", "_unsafe_view", "resize_", "set_"} | READS - {"equal"}


@attrs.define
class Counts:
    """What the lines of kvpolicy called for, by kind, line and operation.

    A launch is an operation that runs on the GPU: one of PyTorch that is no view, or a kernel of
    ours. A wait is a read of the GPU's numbers by the host. A copy takes pageable memory of the
    host to the GPU; PyTorch waits for it, too, unless it is `non_blocking`. Then it is a launch.
    """

    of: dict[Kind, Counter[tuple[str, str]]] = attrs.field(
        factory=lambda: {kind: Counter() for kind in KINDS}
    )

    def clear(self) -> None:
        """Begin anew."""
        for counter in self.of.values():
            counter.clear()

    def total(self, kind: Kind) -> int:
        """Return how many there were of a kind."""
        return self.of[kind].total()

    def note(self, kind: Kind, name: str) -> None:
        """Count one, unless it is of the model's own making."""
        line = _line_of_ours()
        if line is not None:
            self.of[kind][line, name] += 1

    def operation(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Count what an operation of PyTorch does."""
        name = function._schema.name.partition("::")[2]
        tensors = [each for each in tree_leaves((args, dict(kwargs))) if isinstance(each, Tensor)]
        on_gpu = any(isinstance(each, Pretended) for each in tensors)
        device = kwargs.get("device")
        if name in ("_to_copy", "copy_"):
            asynchronous = kwargs.get("non_blocking") or (name == "copy_" and args[2:3] == (True,))
            if self._moves(name, tensors, device, blocking=not asynchronous):
                return
        if on_gpu and _waits(name, args, kwargs):
            self.note("waits", name)
        if on_gpu and name.startswith("index") and _index_from_host(args):
            self.note("copies", name)
        runs_there = on_gpu if device is None else is_gpu(device)
        if runs_there and not _is_free(function, name):
            self.note("launches", name)

    def _moves(self, name: str, tensors: Sequence[Tensor], device: Any, *, blocking: bool) -> bool:
        """Count a copy between host and GPU; return whether it was one."""
        if name == "copy_":
            if len(tensors) < 2:
                return False
            to_gpu, from_gpu = (isinstance(each, Pretended) for each in tensors[:2])
        else:
            from_gpu = isinstance(tensors[0], Pretended)
            to_gpu = from_gpu if device is None else is_gpu(device)
        if to_gpu == from_gpu:
            return False
        if from_gpu:
            self.note("waits", f"{name} to the host")
        elif not blocking:
            self.note("launches", f"{name} from the host, without a wait")
        elif tensors[-1].dim() or name != "copy_":
            self.note("copies", name)
        return True


def _waits(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    if name in READS or name in SIZED_BY_NUMBERS:
        return True
    if name == "repeat_interleave":
        return kwargs.get("output_size") is None
    if not name.startswith("index"):
        return False
    places = [each for each in tree_leaves(args[1]) if isinstance(each, Tensor)]
    return any(each.dtype in (torch.bool, torch.uint8) for each in places)


def _index_from_host(args: Sequence[Any]) -> bool:
    return any(
        isinstance(each, Tensor) and not isinstance(each, Pretended) and each.dim() > 0
        for each in tree_leaves(args[1])
    )


def _is_free(function: Any, name: str) -> bool:
    """Whether nothing runs on the GPU: a view, or memory that is not written."""
    if name in NO_LAUNCH or "empty" in name:
        return True
    aliases = (each.alias_info for each in function._schema.returns)
    return any(alias is not None and not alias.is_write for alias in aliases)


def _line_of_ours() -> str | None:
    """Return the line of kvpolicy that called; None for what the model computes by itself."""
    frame = sys._getframe(2)
    of_model = False
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(OURS) and "/.venv/" not in file:
            return None if of_model and file in AROUND else f"{file[len(ROOT) :]}:{frame.f_lineno}"
        of_model = of_model or file.startswith(MODELS)
        frame = frame.f_back  # type: ignore[assignment]
    return None
