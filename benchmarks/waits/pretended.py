"""Tensors that hold numbers on the CPU and say that they are on a GPU.

So the code takes the branches of a GPU, and every operation on such a tensor can be counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda:0")
HELD_ON = torch.device("cpu")
"""Where the numbers are of tensors that are made on the GPU."""

Observer = Callable[[Any, Sequence[Any], Mapping[str, Any]], None]
"""Is told every operation before it runs, with its arguments."""
INDEXING = {
    Tensor.__getitem__: torch.ops.aten.index.Tensor,
    Tensor.__setitem__: torch.ops.aten.index_put_.default,
}


def _contiguous(tensor: Pretended) -> Tensor:
    if tensor.numbers.is_contiguous():
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def _read(kind: Callable[[Any], Any]) -> Callable[[Tensor], Any]:
    return lambda tensor: kind(torch.ops.aten._local_scalar_dense.default(tensor))


INSTEAD = {
    Tensor.__float__: _read(float),
    Tensor.__int__: _read(int),
    Tensor.__bool__: _read(bool),
    Tensor.contiguous: _contiguous,
    Tensor.copy_: torch.ops.aten.copy_.default,
    Tensor.item: torch.ops.aten._local_scalar_dense.default,
    Tensor.nonzero: torch.ops.aten.nonzero.default,
    Tensor.__invert__: torch.bitwise_not,
}
"""Functions that ask a driver for the device of their tensor, and what does the same without."""


class Pretended(Tensor):
    """A tensor whose numbers are in `numbers`, on the CPU."""

    numbers: Tensor

    @staticmethod
    def __new__(cls: type[Pretended], numbers: Tensor) -> Pretended:
        """Return a tensor of the same shape, layout and dtype."""
        made = Tensor._make_wrapper_subclass(
            cls,
            numbers.size(),
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=GPU,
        )
        made.numbers = numbers
        pretended: Pretended = made
        return pretended

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation that was called outside of `pretending`."""
        return _run(function, args, kwargs or {})

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run here what asks a driver for the device of its tensor before it is dispatched."""
        if function in INDEXING:
            return _index(function, args)
        function = INSTEAD.get(function, function)
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))

    def tolist(self) -> Any:
        """Copy to the CPU, as PyTorch does for other tensors."""
        return self.cpu().tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        """Return the storage of the numbers."""
        return self.numbers.untyped_storage()

    def data_ptr(self) -> int:
        """Return where the numbers are."""
        return self.numbers.data_ptr()


class _Operations(TorchDispatchMode):
    """Tells an observer every operation, and runs it on the numbers."""

    def __init__(self, observer: Observer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._observer = observer

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        self._observer(function, args, kwargs)
        return _run(function, args, kwargs)


class _Functions(TorchFunctionMode):
    """Tells an observer what PyTorch decides before an operation is dispatched."""

    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self._observer = observer

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.tensor and is_gpu(kwargs.get("device")):
            return torch.tensor(*args, **kwargs | {"device": "cpu"}).to(GPU)
        if function in INDEXING and any(isinstance(each, Pretended) for each in tree_leaves(args)):
            self._observe_index(function, args)
        return function(*args, **kwargs)

    def _observe_index(self, function: Any, args: Sequence[Any]) -> None:
        table, index, *values = args
        parts = index if isinstance(index, tuple) else (index,)
        places = [each for each in parts if isinstance(each, (Tensor, list))]
        if places:
            self._observer(INDEXING[function], (table, places, *values), {})
        elif values:
            source = values[0] if isinstance(values[0], Tensor) else 0
            self._observer(torch.ops.aten.copy_.default, (table, source), {})


def is_gpu(device: Any) -> bool:
    """Whether a device, or its name, is a GPU."""
    return device is not None and torch.device(device).type == "cuda"


def on_gpu(model: nn.Module) -> None:
    """Replace the weights and buffers of a model by pretended ones."""
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(Pretended(weight.data), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = Pretended(buffer)


@contextmanager
def pretending(observer: Observer) -> Iterator[None]:
    """Let tensors be made on a GPU that is not there, and tell `observer` every operation."""
    with ExitStack() as stack:
        stack.enter_context(patch("torch.cuda._lazy_init", lambda: None))
        for name in ("_exchange_device", "_maybe_exchange_device"):
            stack.enter_context(patch(f"torch.cuda.{name}", lambda index: index))
        stack.enter_context(_Functions(observer))
        stack.enter_context(_Operations(observer))
        yield


def numbers_of(tree: Any) -> Any:
    """Return a tree of arguments with the numbers of pretended tensors in their place."""
    return tree_map(lambda each: each.numbers if isinstance(each, Pretended) else each, tree)


def pretended(tree: Any) -> Any:
    """Return a tree of results in which all tensors are pretended."""
    return tree_map(
        lambda each: (
            Pretended(each)
            if isinstance(each, Tensor) and not isinstance(each, Pretended)
            else each
        ),
        tree,
    )


def _run(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run an operation on numbers, and return its results where they would be."""
    device = kwargs.get("device")
    given = any(isinstance(each, Pretended) for each in tree_leaves((args, dict(kwargs))))
    own = numbers_of(dict(kwargs)) | ({"device": HELD_ON} if is_gpu(device) else {})
    own = {name: each for name, each in own.items() if name != "pin_memory"}
    found = function(*numbers_of(args), **own)
    if not (is_gpu(device) if device is not None else given):
        return found
    if _writes(function):
        return kwargs.get("out", args[0])
    return pretended(found)


def _writes(function: Any) -> bool:
    """Whether an operation returns the tensor that it wrote to."""
    returns = function._schema.returns
    alias = returns[0].alias_info if len(returns) == 1 else None
    return alias is not None and alias.is_write


def _index(function: Any, args: Sequence[Any]) -> Any:
    with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
        found = function(*numbers_of(args))
    if found is None:
        return None
    return Pretended(found) if isinstance(args[0], Pretended) else found
