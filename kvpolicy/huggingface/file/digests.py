"""SHA-256 of the numbers of tensors, block by block."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

BLOCK = 1 << 22
"""Bytes that are hashed at a time."""

_COMPRESSED = {
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}


class Digests:
    """Digests of tensors, made on up to eight cores; a context manager.

    Equal are the digests of tensors of equal bytes, shape and dtype, wherever they are and whatever
    their strides. Beside the tensor a block for each core is in memory. A tensor that is not
    contiguous is copied by blocks. Nothing is remembered from one use to the next: PyTorch counts
    no edits through `.data` or in inference mode, so that only reading all numbers is right.
    """

    def __init__(self) -> None:
        """Start with no tensor known."""
        self._workers = min(8, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(self._workers)
        self._known: dict[tuple[Any, ...], tuple[Tensor, str]] = {}

    def __enter__(self) -> Self:
        """Use the threads."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the threads."""
        self._pool.shutdown()

    def of(self, tensor: Tensor, *, lasting: bool = False) -> str:
        """Return a tensor's digest; of one that lasts as long as this object, tied ones share it.

        Raises what PyTorch raises if it cannot give the numbers, as on the meta device.
        """
        with torch.no_grad():
            parts = _parts(tensor.detach())
            if parts is None:
                return self._of_plain(tensor.detach(), lasting=lasting)
            own = [f"{name} {self.of(each, lasting=lasting)}" for name, each in parts]
            own += [type(tensor).__name__, _layout(tensor), *_facts(tensor)]
            return hashlib.sha256("\n".join(own).encode()).hexdigest()

    def _of_plain(self, tensor: Tensor, *, lasting: bool) -> str:
        key = (tensor.data_ptr(), _layout(tensor), tensor.stride(), tensor.device, tensor.is_conj())
        if key in self._known:
            return self._known[key][1]
        found = hashlib.sha256(_layout(tensor).encode())
        pending: deque[Future[bytes]] = deque()
        blocks = _blocks(tensor.resolve_conj().resolve_neg())
        if tensor.nbytes <= BLOCK:
            found.update(_block_digest(_on_the_host(next(blocks))))
        for block in blocks:
            if len(pending) > self._workers:
                found.update(pending.popleft().result())
            pending.append(self._pool.submit(_block_digest, _on_the_host(block)))
        for each in pending:
            found.update(each.result())
        if lasting:
            # The tensor is kept, so that no other one can come to be at its address.
            self._known[key] = tensor, found.hexdigest()
        return found.hexdigest()


def digest(tensor: Tensor) -> str:
    """Return the digest of one tensor.

    >>> digest(torch.ones(2, 3)) == digest(torch.ones(3, 2).T)
    True
    >>> digest(torch.ones(2, 3)) == digest(torch.ones(3, 2))
    False
    """
    with Digests() as digests:
        return digests.of(tensor)


def _layout(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"


def _parts(tensor: Tensor) -> list[tuple[str, Tensor]] | None:
    """Return the plain tensors that a tensor is made of; None for a plain one."""
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        return [(name, getattr(tensor, name)) for name in names]
    if tensor.layout in _COMPRESSED:
        return [(name, getattr(tensor, name)()) for name in _COMPRESSED[tensor.layout]]
    if tensor.layout == torch.sparse_coo:
        whole = tensor.coalesce()
        return [("indices", whole.indices()), ("values", whole.values())]
    if tensor.layout != torch.strided:
        return [("dense", tensor.to_dense())]
    if not tensor.is_quantized:
        return None
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return [("numbers", tensor.int_repr())]
    scales, zeros = tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
    return [("numbers", tensor.int_repr()), ("scales", scales), ("zeros", zeros)]


def _facts(tensor: Tensor) -> list[str]:
    """Return what says how the parts of a tensor are read, beside the parts."""
    if is_traceable_wrapper_subclass(tensor):
        _, context = tensor.__tensor_flatten__()
        return [f"{key} {value}" for key, value in _plain_items(context)]
    if not tensor.is_quantized:
        return []
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return [repr(tensor.q_scale()), str(tensor.q_zero_point())]
    return [str(tensor.q_per_channel_axis())]


def _plain_items(context: Any) -> list[tuple[Any, Any]]:
    items = context.items() if isinstance(context, dict) else enumerate(context or ())
    return [pair for pair in items if isinstance(pair[1], str | int | float | torch.dtype | tuple)]


def _blocks(tensor: Tensor) -> Iterator[Tensor]:
    """Cut a tensor along its axes; where it is cut follows from its shape and dtype alone."""
    if tensor.nbytes <= BLOCK:
        yield tensor
        return
    rows = BLOCK * len(tensor) // tensor.nbytes
    if rows:
        yield from tensor.split(rows)
        return
    for row in tensor:
        yield from _blocks(row)


def _on_the_host(block: Tensor) -> Tensor:
    return block.contiguous().cpu().reshape(-1).view(torch.uint8)


def _block_digest(block: Tensor) -> bytes:
    return hashlib.sha256(block.numpy().data).digest()
