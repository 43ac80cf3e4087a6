"""What the host knows of a layer's last plan, so that it need not be read from the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kvpolicy.observation.note import Note
from kvpolicy.observation.observation import Observation
from kvpolicy_lacache.planning import Plan


class Noted(NamedTuple):
    """The last plan of one row.

    It was made after `seen` tokens, when the row held `length`. Of these `compacted` were compacted
    already. The plan keeps `kept` rows, and `planned` of them are compacted.
    """

    seen: int
    length: int
    compacted: int
    kept: int
    planned: int

    def compacted_before(self, observation: Observation) -> int | None:
        """Return how many rows were compacted before a forward; None if that is not known."""
        before = observation.length - observation.window
        if observation.seen - observation.window != self.seen:
            return None
        return {self.length: self.compacted, self.kept: self.planned}.get(before)


def noted_of(
    plans: Mapping[int, Plan],
    cursors: Sequence[int],
    observation: Observation,
    *,
    sinks: int = 0,
    recent: int = 0,
) -> list[Note] | None:
    """Return the notes of rows with these cursors; without a plan a row keeps all it holds.

    Return None if a plan drops one of the first `sinks` or of the last `recent` rows, which stay,
    or has a row twice.
    """
    seen, length = observation.seen, observation.length
    noted: dict[int, Note] = {}
    for cursor in dict.fromkeys(cursors):
        compacted = min(cursor, length)
        noted[cursor] = Noted(seen, length, compacted, length, compacted)
        if (plan := plans.get(cursor)) is not None:
            if not _keeps(plan, length, sinks=sinks, recent=recent):
                return None
            kept = len(plan.rows)
            noted[cursor] = Noted(seen, length, compacted, kept, min(plan.cursor, kept))
    return [noted[cursor] for cursor in cursors]


def _keeps(plan: Plan, length: int, *, sinks: int, recent: int) -> bool:
    """Whether a plan has the first and the last rows, and no row twice."""
    rows = plan.rows
    if sinks + recent > len(rows) or not bool((rows[1:] > rows[:-1]).all()):
        return False
    # Rows ascend, so no row is missing before these, or behind them.
    first = sinks == 0 or int(rows[sinks - 1]) == sinks - 1
    return first and (recent == 0 or int(rows[-recent]) == length - recent)


def known_cursors(observation: Observation, start: int) -> list[int] | None:
    """Return how many rows of each sequence are compacted; None if the host does not know."""
    if observation.state is None:
        return [start] * len(observation.keys)
    if observation.noted is None:
        return None
    found = [Noted(*note).compacted_before(observation) for note in observation.noted]
    known = [max(start, each) for each in found if each is not None]
    return known if len(known) == len(found) else None


def counts_of(observation: Observation) -> list[int] | None:
    """Return how many rows the plan of each sequence keeps; None if the host does not know."""
    if observation.noted is None:
        return None
    noted = [Noted(*note) for note in observation.noted]
    current = (observation.seen, observation.length)
    if any((note.seen, note.length) != current for note in noted):
        return None
    return [note.kept for note in noted]
