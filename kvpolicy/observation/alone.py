"""One query of a window, with what it sees."""

from __future__ import annotations

import attrs

from kvpolicy.observation.observation import Observation


def query_alone(observation: Observation, query: int) -> Observation:
    """Return an observation of one of the W queries, and of the positions that it sees.

    >>> from kvpolicy.testing import observation
    >>> layer = query_alone(observation(positions=9, window=4), 1)
    >>> layer.window, layer.length
    (1, 7)
    """
    unseen = 0 if observation.ahead else observation.window - query - 1
    seen = observation.length - unseen
    return attrs.evolve(
        observation,
        queries=observation.queries[:, :, query : query + 1],
        keys=observation.keys[:, :, :seen],
        values=observation.values[:, :, :seen],
        positions=observation.positions[:, :, :seen],
    )
