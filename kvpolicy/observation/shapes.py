"""How an observation's `repr` names a tensor: by its dtype and shape."""

from __future__ import annotations

from torch import Tensor


def shape_of(tensor: Tensor | None) -> str:
    """Return for example "<float32 [1, 4, 2, 8]>"."""
    return "None" if tensor is None else f"<{str(tensor.dtype)[6:]} {list(tensor.shape)}>"
