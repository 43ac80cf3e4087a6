"""What one step of an engine does to each request, in tokens: where prompts end, what is gone."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from kvpolicy.vllm.rounding import Rounding


@attrs.frozen(kw_only=True)
class Row:
    """One request in a step: its queries are tokens `first` ... `first + queries - 1` of the batch.

    `seen` counts its tokens after this step, `prompt` those of its prompt.
    """

    request: str
    first: int
    queries: int
    seen: int
    prompt: int

    @property
    def before(self) -> int:
        """Tokens that were computed before this step."""
        return self.seen - self.queries

    @property
    def of_prompt(self) -> int:
        """How many of the queries belong to the prompt."""
        return max(0, min(self.seen, self.prompt) - self.before)

    @property
    def ends(self) -> bool:
        """Whether the prompt ends in this step."""
        return self.before < self.prompt <= self.seen


@attrs.frozen(kw_only=True)
class Piece:
    """Some queries of a row, and which blocks of its table are gone before they attend.

    `gone` blocks of the table from `start` on are left out; `seen` counts the tokens held.
    """

    row: int
    queries: int
    seen: int
    start: int = 0
    gone: int = 0


@attrs.frozen(kw_only=True)
class Step:
    """The rows of a step that evict or will evict, and all pieces in the order of the batch.

    A request that was preempted is computed anew: its prompt and its answer so far. The queries of
    the answer attend to what the prompt has kept, so they are a piece of their own.
    """

    pieces: Sequence[Piece]
    reading: Sequence[int] = ()
    """Rows whose prompt goes on after this step."""
    ending: Sequence[int] = ()
    """Rows whose prompt ends in this step."""
    rows: Sequence[Row] = ()

    @property
    def is_plain(self) -> bool:
        """Whether nothing was, is or will be evicted."""
        return not (self.reading or self.ending or any(piece.gone for piece in self.pieces))

    @property
    def split(self) -> Sequence[int]:
        """Rows whose queries attend before and after the eviction."""
        return [at for at in self.ending if self.rows[at].seen > self.rows[at].prompt]


def step_of(rows: Sequence[Row], rounding: Rounding, *, block: int) -> Step:
    """Say what a step does.

    >>> row = Row(request="a", first=0, queries=1, seen=201, prompt=200)
    >>> step_of([row], Rounding(budget=64, protected=0, window=8), block=32).pieces
    [Piece(row=0, queries=1, seen=73, start=2, gone=4)]
    """
    pieces: list[Piece] = []
    reading, ending = [], []
    for at, row in enumerate(rows):
        blocks = rounding.evicted_blocks(row.prompt, block=block)
        if not blocks:
            pieces.append(Piece(row=at, queries=row.queries, seen=row.seen))
            continue
        if row.seen < row.prompt:
            reading.append(at)
        if row.ends:
            ending.append(at)
        pieces.extend(_pieces(at, row, blocks, block))
    return Step(pieces=pieces, reading=reading, ending=ending, rows=rows)


def _pieces(at: int, row: Row, blocks: int, block: int) -> list[Piece]:
    """Return the queries of a row before and after its prompt has ended."""
    found = []
    if row.of_prompt:
        found.append(Piece(row=at, queries=row.of_prompt, seen=min(row.seen, row.prompt)))
    if rest := row.queries - row.of_prompt:
        start = row.prompt // block - blocks
        seen = row.seen - blocks * block
        found.append(Piece(row=at, queries=rest, seen=seen, start=start, gone=blocks))
    return found
