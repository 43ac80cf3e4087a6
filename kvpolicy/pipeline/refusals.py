"""Errors for faulty results of parts. Each names the part and its plugin."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from kvpolicy.errors import InvalidComponentError
from kvpolicy.pipeline.title import Title

COUNTS = {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}
"""The dtypes that counts may have."""


def refuse(title: Title, got: str, expected: str) -> NoReturn:
    """Raise InvalidComponentError."""
    raise InvalidComponentError(f"{title} returned {got}; it must return {expected}.")


def check_place(title: Title, tensor: Tensor, *devices: torch.device) -> None:
    """Refuse a tensor that is not on one of `devices`, and a sparse tensor."""
    if tensor.layout != torch.strided:
        refuse(title, f"a tensor of layout {tensor.layout}", "a dense tensor")
    if tensor.device not in devices:
        choices = " or ".join(dict.fromkeys(map(str, devices)))
        refuse(title, f"a tensor on {tensor.device}", f"a tensor on {choices}")
