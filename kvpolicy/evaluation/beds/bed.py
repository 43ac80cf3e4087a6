"""A bed: prompts of one kind and one model, with what follows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from kvpolicy.evaluation.measures.reconstruction import Recording
from kvpolicy.evaluation.recording.read_once import ReadOnce


@attrs.frozen(kw_only=True)
class Bed:
    """Prompts of a model with what follows them, as the full cache has it.

    The last `answer` tokens of what follows are an answer; 0 if nothing was asked.
    """

    name: str
    model: Any
    recordings: Sequence[Recording]
    answer: int = 0
    readers: Sequence[ReadOnce] = attrs.field(init=False, repr=False)
    """One for each recording: its prompts are read once for all policies."""

    @readers.default
    def _none_has_read(self) -> Sequence[ReadOnce]:
        return [ReadOnce(self.model) for _ in self.recordings]
