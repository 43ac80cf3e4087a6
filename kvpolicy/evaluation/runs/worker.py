"""What one process of a cluster does: it loads the model once, and computes jobs that are sent."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs

from kvpolicy.errors import InvalidValueError, ResultsError, told
from kvpolicy.evaluation.runs.engine import InProcess, Job
from kvpolicy.evaluation.runs.identity import machine
from kvpolicy.evaluation.runs.row import Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Loader: TypeAlias = "Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]"
"""Loads the model and its tokenizer, wherever it is called."""


class Worker:
    """A model in a process of its own. `load` and the jobs are pickled."""

    def __init__(self, load: bytes) -> None:
        self._load = load

    @cached_property
    def engine(self) -> InProcess:
        """The model, which is loaded when it is first asked for."""
        model, tokenizer = _read(self._load)()
        return InProcess(model=model, tokenizer=tokenizer)

    def introduce(self) -> dict[str, Any]:
        """Say which model this is, and in which process it runs."""
        return {
            "identity": self.engine.identity,
            "tokenizer": self.engine.tokenizer,
            "process": os.getpid(),
        }

    def run(self, sent: bytes) -> list[Row]:
        """Compute a job, and return its rows.

        Raises ResultsError if this process has another model or other code than the rows say.
        """
        job = _read(sent)
        self._check(job)
        here = machine()
        return [
            attrs.evolve(row, run={**row.run, "machine": here}) for row in self.engine.rows([job])
        ]

    def _check(self, job: Job) -> None:
        run = job.starts[0].run
        for what, theirs, ours in (
            ("model", self.engine.identity["digest"], run["model"]["digest"]),
            ("code", job.entrant.code, run["code"]),
        ):
            if theirs != ours:
                raise ResultsError(
                    f"a worker has another {what} ({theirs}) than this process ({ours}). Install "
                    "the same packages on every node, and load the same model everywhere."
                )


def _read(sent: bytes) -> Any:
    try:
        return pickle.loads(sent)
    except Exception as error:  # whatever an import on this node raises
        raise InvalidValueError(
            f"a worker cannot read what it was sent: {told(error)}. What the model's loader, the "
            "metrics and the policies are made of must be importable on every node."
        ) from error
