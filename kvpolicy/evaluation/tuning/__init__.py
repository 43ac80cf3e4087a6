"""The best policy for one's own prompts at given bytes, found by search.

kvpolicy tune --model M --data mine.jsonl --bytes 10%
"""

from kvpolicy.evaluation.tuning.tune import Tuned, tune

__all__ = ["Tuned", "tune"]
