"""The options that all tasks of RULER have."""

from __future__ import annotations

import attrs

from kvpolicy.options import count, natural


@attrs.frozen(kw_only=True)
class LengthOptions:
    """How many prompts there are, and how long they are.

    A prompt and its answer have at most `length` tokens, of which `template_tokens` are left free
    for a chat template. All random numbers come from `seed`.
    """

    length: int = attrs.field(default=4096, validator=count)
    num_samples: int = attrs.field(default=500, validator=count)
    seed: int = attrs.field(default=42, validator=natural)
    template_tokens: int = attrs.field(default=0, validator=natural)

    @property
    def room(self) -> int:
        """The tokens that are left for prompt and answer."""
        return self.length - self.template_tokens
