"""Every promise of `kvpolicy.testing`, of every part that is installed, on many more examples."""

import pytest

from kvpolicy.registry import installed
from kvpolicy.stages.demands import SaysPrefillOnly
from kvpolicy.testing import PROMISES

TABLE = [[1.0, 2.0, 3.0], [3.0, 1.0, 2.0], [2.0, 2.0, 2.0], [0.0, 1.0, 5.0]]


class Repeats:
    """A future of the last query, key and value once more, for the oracle."""

    def future_of(self, observation):
        from kvpolicy.evaluation.recording import Future

        last = slice(-1, None)
        return Future(
            queries=observation.queries[:, :, last],
            keys=observation.keys[:, :, last],
            values=observation.values[:, :, last],
        )
