"""The second pass over a prompt that a scorer asks for."""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from kvpolicy.errors import shown
from kvpolicy.observation.repetition import Repeated, Repetition
from kvpolicy.pipeline.checks import at_work
from kvpolicy.pipeline.doubts import is_patient, refuse_unless_finite
from kvpolicy.pipeline.numbers import check_numbers, total
from kvpolicy.pipeline.pipeline import Pipeline
from kvpolicy.pipeline.refusals import check_place, refuse
from kvpolicy.stages.scoring import RepeatingScorer


def repetition_of(pipeline: Pipeline) -> Repetition | None:
    """Return how the scorer has prompts repeated; None if it does not ask for that.

    Raises InvalidComponentError or ComponentFailedError for a scorer that does not say it.
    """
    if not isinstance(pipeline.scorer, RepeatingScorer):
        return None
    title = pipeline.titles["scorer"]
    with at_work(title):
        found: object = pipeline.scorer.repetition
    if not isinstance(found, Repetition):
        refuse(title, f"the repetition {shown(found)}", "a Repetition")
    return found


def repeated_state(pipeline: Pipeline, repeated: Repeated) -> Float[Tensor, "B H C *rest"]:
    """Return the running state of a chunk's positions.

    Raises InvalidComponentError or ComponentFailedError, as other stages do.
    """
    title, observation = pipeline.titles["scorer"], repeated.observation
    with at_work(title, observation):
        scorer: RepeatingScorer = pipeline.scorer  # type: ignore[assignment]
        state: object = scorer.repeated(repeated)
    expected = (*observation.queries.shape[:2], repeated.end - repeated.first)
    told = partial(refuse, title, expected=f"float32 {expected} (B, H, C) or with more dimensions")
    if not isinstance(state, Tensor):
        told(f"the state of a chunk {shown(state)}")
    elif state.dtype != torch.float32 or tuple(state.shape[:3]) != expected:
        told(f"the state of a chunk {state.dtype} {tuple(state.shape)}")
    check_place(title, state, observation.keys.device)
    blamed = partial(refuse, title, "a state that is NaN or infinite", "a finite state")
    if not is_patient(state.device):
        if not bool(state.isfinite().all()):
            check_numbers(observation)
            blamed()
    elif not title.is_proved:
        refuse_unless_finite(total(state), blamed)
    return state
