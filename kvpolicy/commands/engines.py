"""Where `kvpolicy eval` computes its runs: in this process, or on a Ray cluster."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import attrs

from kvpolicy.commands.checkpoints import Checkpoint
from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation.runs.engine import Engine, InProcess

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def engine_named(name: str, checkpoint: Checkpoint, **options: Any) -> Engine:
    """Return the engine of that name, for the model of a checkpoint.

    `options` are those of a cluster; None is not given. Raises InvalidValueError if one is given
    for this process, and what loading the model raises.
    """
    given = {option: value for option, value in options.items() if value is not None}
    if name == "ray":
        from kvpolicy.evaluation.runs.cluster import RayEngine

        return RayEngine(load=partial(loaded, _absolute(checkpoint)), **given)
    if given:
        wrong = ", ".join(f"--{option.replace('_', '-')}" for option in given)
        raise InvalidValueError(f"{wrong} is for --engine ray. Runs are computed in this process.")
    model, tokenizer = loaded(checkpoint)
    return InProcess(model=model, tokenizer=tokenizer)


def loaded(checkpoint: Checkpoint) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the model and its tokenizer; a worker does it by this function too."""
    return checkpoint.model(), checkpoint.tokenizer()


def _absolute(checkpoint: Checkpoint) -> Checkpoint:
    """Name a folder in full: a worker may start in another one."""
    if checkpoint.folder is None:
        return checkpoint
    return attrs.evolve(checkpoint, name=str(checkpoint.folder.resolve()))
