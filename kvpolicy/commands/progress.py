"""A progress bar over the runs of a grid, which says how long they will still take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from kvpolicy.evaluation.runs.grid import Grid
    from kvpolicy.evaluation.runs.row import Row


@attrs.frozen(kw_only=True)
class Bar:
    """What a grid tells when it begins, and of each row."""

    progress: Progress
    task: TaskID

    def start(self, grid: Grid) -> None:
        """Learn how many runs there are."""
        self.progress.update(self.task, total=len(grid))

    def advance(self, row: Row, ran: bool) -> None:
        """Show whose run has ended."""
        from kvpolicy.evaluation.runs.entrant import Entrant

        title = Entrant(name=row.entrant, budget=row.budget).title
        self.progress.update(self.task, advance=1, description=f"{row.task}: {title}")


@contextmanager
def shown_progress(console: Console) -> Iterator[Bar]:
    """Show a bar in the block, and remove it; nothing is shown where output is no terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    if hidden := not console.is_terminal:
        console = Console(quiet=True)  # rich before 14.3 ends a hidden bar with an empty line
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=hidden
    ) as progress:
        yield Bar(progress=progress, task=progress.add_task(""))
