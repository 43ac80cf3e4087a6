"""What a user is told when an engine starts."""

from __future__ import annotations

from kvpolicy.vllm.asked import Asked
from kvpolicy.vllm.rounding import Rounding


def started(asked: Asked, block: int) -> str:
    """Say which policy is on, what became of its budget, and what is off."""
    kept = Rounding.of(asked.policy).told(block)
    return (
        f"kvpolicy: {asked.title} evicts when a prompt ends. Each key/value head keeps {kept}, as "
        f"blocks of {block} tokens are given back whole. Off: prefix caching, CUDA graphs of "
        "attention. Refused: speculative decoding, KV connectors."
    )
