"""Running state with notes: what the host knows of it without reading it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kvpolicy.observation.note import Notes
from kvpolicy.observation.observation import Observation
from kvpolicy.pipeline.checks import at_work, checked_state
from kvpolicy.pipeline.pipeline import Pipeline
from kvpolicy.pipeline.refusals import refuse
from kvpolicy.pipeline.title import Title


def accumulated(policy: Pipeline, observation: Observation) -> tuple[Tensor | None, Notes]:
    """Return the running state after one more forward, and what the scorer notes beside it.

    Raises what `Pipeline.accumulate` raises, and InvalidComponentError for what is no note.
    """
    scorer, title = policy.noting_scorer, policy.titles["scorer"]
    if scorer is None:
        return policy.accumulate(observation), None
    with at_work(title, observation):
        recent = policy.recent_of(observation.budget)
        state, noted = scorer.accumulate_noted(observation, sinks=policy.sinks, recent=recent)
    return checked_state(title, state, observation), _checked(title, noted, observation)


def _checked(title: Title, noted: Any, observation: Observation) -> Notes:
    rows = len(observation.keys)
    are_notes = isinstance(noted, list) and all(isinstance(each, tuple) for each in noted)
    if noted is not None and not (are_notes and len(noted) == rows):
        refuse(title, f"the notes {noted!r}", f"a list of {rows} tuples, one for each row, or None")
    found: Notes = noted
    return found
