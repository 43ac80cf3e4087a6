"""The contract of every part of a plugin, and tools to test with.

    test_contract = kvpolicy.testing.contract(plugin="myplugin")

It needs the extra `testing` (`pip install kvpolicy[testing]`).
"""

from kvpolicy.cache.eviction.one_layer import evicted, selected
from kvpolicy.testing.contract import contract
from kvpolicy.testing.models import FAMILIES, tiny_model
from kvpolicy.testing.promises import PROMISES, Promise, check
from kvpolicy.testing.samples import observation
from kvpolicy.testing.strategies import observations, scores
from kvpolicy.testing.tokenizers import byte_tokenizer

__all__ = [
    "FAMILIES",
    "PROMISES",
    "Promise",
    "byte_tokenizer",
    "check",
    "contract",
    "evicted",
    "observation",
    "observations",
    "scores",
    "selected",
    "tiny_model",
]
