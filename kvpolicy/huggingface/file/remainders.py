"""Whether what a file says of a layer's remainder can be true."""

from __future__ import annotations

import torch

from kvpolicy.cache.memory.contents import Contents


def check_remainder(contents: Contents, *, keeps: bool) -> None:
    """Raise ValueError unless a remainder stands for exactly what was evicted.

    `keeps` says whether the policy keeps one.
    """
    held = (contents.positions >= 0).sum(-1)
    evicted = torch.tensor(contents.slots.seen, device=held.device)[:, None] - held
    remainder = contents.remainder
    if remainder is None:
        if keeps and bool(evicted.any()):
            raise ValueError("nothing stands for what was evicted")
        return
    if not keeps:
        raise ValueError("it has a remainder, and its policy keeps none")
    expected = torch.promote_types(contents.keys.view.dtype, torch.float32)
    if {remainder.keys.dtype, remainder.values.dtype} != {expected}:
        raise ValueError(f"a remainder is {remainder.keys.dtype}")
    if not bool(remainder.keys.isfinite().all() & remainder.values.isfinite().all()):
        raise ValueError("a remainder is not finite")
    if not torch.equal(remainder.counts, evicted):
        raise ValueError("a remainder stands for another number of positions than was evicted")
