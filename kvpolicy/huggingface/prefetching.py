"""Which layer is brought to the device while another one is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvpolicy.huggingface.layer import PolicyLayer


def prefetch_behind(layers: Sequence[Any], index: int) -> None:
    """Begin to bring the layer that evicts next to the device; the first layer follows the last."""
    behind = [*layers[index + 1 :], *layers[:index]]
    following = next((layer for layer in behind if isinstance(layer, PolicyLayer)), None)
    if following is not None:
        following.prefetch()
