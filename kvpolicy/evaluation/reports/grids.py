"""Scores by length and depth, for tasks that put a needle at each depth of texts of each length."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from statistics import fmean

import attrs

from kvpolicy.budget import Budget
from kvpolicy.evaluation.runs.row import Row

_PLACE = re.compile(r"length (\d+), depth (\d+)\b")


@attrs.frozen(kw_only=True)
class Grid:
    """The mean score of one entrant at each depth (a line) and length (a column); None: no score.

    Depths are percent of the text, lengths are tokens.
    """

    task: str
    entrant: str
    budget: Budget | None
    lengths: tuple[int, ...]
    depths: tuple[int, ...]
    scores: tuple[tuple[float | None, ...], ...]

    @property
    def mean(self) -> float | None:
        """The mean of all places that have a score."""
        found = [score for line in self.scores for score in line if score is not None]
        return fmean(found) if found else None

    def narrowed(self, most: int) -> Grid:
        """Return a grid of at most so many columns: neighbours are averaged, under the last length.

        >>> Grid(task="t", entrant="e", budget=8, lengths=(1, 2, 3), depths=(0,),
        ...     scores=((0.0, 1.0, 1.0),)).narrowed(2)
        Grid(task='t', entrant='e', budget=8, lengths=(2, 3), depths=(0,), scores=((0.5, 1.0),))
        """
        width = -(-len(self.lengths) // most)
        starts = range(0, len(self.lengths), width)
        return attrs.evolve(
            self,
            lengths=tuple(self.lengths[start : start + width][-1] for start in starts),
            scores=tuple(
                tuple(_mean(line[start : start + width]) for start in starts)
                for line in self.scores
            ),
        )


def grids(rows: Iterable[Row]) -> list[Grid]:
    """Return a grid for each task, entrant and budget whose samples have a length and a depth.

    The name of such a sample is 'length 1000, depth 50'.
    """
    found: dict[tuple[str, str, Budget | None], dict[tuple[int, int], list[float]]] = {}
    for row in rows:
        if place := _PLACE.match(row.sample):
            scores = found.setdefault((row.task, row.entrant, row.budget), {})
            at = scores.setdefault((int(place[1]), int(place[2])), [])
            at += [] if row.score is None else [row.score]
    return [_grid(*who, scores) for who, scores in found.items()]


def _grid(
    task: str, entrant: str, budget: Budget | None, scores: dict[tuple[int, int], list[float]]
) -> Grid:
    lengths, depths = (tuple(sorted(set(each))) for each in zip(*scores, strict=True))
    return Grid(
        task=task,
        entrant=entrant,
        budget=budget,
        lengths=lengths,
        depths=depths,
        scores=tuple(
            tuple(_mean(scores.get((length, depth), [])) for length in lengths) for depth in depths
        ),
    )


def _mean(scores: Sequence[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return fmean(known) if known else None
