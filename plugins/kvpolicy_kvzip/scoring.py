"""Score by repetition: the largest attention to a position while its chunk is read once more."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
import torch
from attrs import Attribute
from jaxtyping import Float, Float32
from torch import Tensor

from kvpolicy.errors import InvalidValueError, UnsupportedModelError, shown
from kvpolicy.observation.fold import Reduce
from kvpolicy.observation.observation import Observation
from kvpolicy.observation.repetition import Repeated, Repetition
from kvpolicy.options import boolean, count, natural
from kvpolicy_kernels import largest_attention, rows_per_block, spans

LEAST = 1e-12
"""A residual stream of a smaller norm counts as one of this norm."""


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _token_ids(instance: object, option: Attribute[Any], value: Any) -> None:
    known = isinstance(value, tuple) and all(type(each) is int and each >= 0 for each in value)
    if not known:
        raise InvalidValueError(
            f"{option.name!r} must be token ids, a tuple of ints from 0 on, not {shown(value)}. "
            "A tokenizer gives them: tuple(tokenizer(text, add_special_tokens=False).input_ids)."
        )


@attrs.frozen(kw_only=True)
class RepetitionScorer:
    """Scores a position by the most that any token attends to it which repeats its chunk.

    s_i = max over the Q tokens t that repeat the chunk, and the query heads of the group, of a_ti

    a is the softmax over the first `sinks` positions, the chunk, and the tokens that repeat it up
    to t. The model reads each prompt a second time for that. With `plus`, a_ti counts times
    ||W_h v_i|| / ||x_t||, where x_t is the residual stream before the layer.

    A chunk has `chunk` tokens. It is read behind words, the last `overlap` tokens of the chunk
    before, and `answer_ids`. The words are `first_ids` for the first chunk of a conversation, and
    `later_ids` for all others.

    Kim et al., NeurIPS 2025, https://arxiv.org/abs/2505.23416.

    >>> RepetitionScorer(chunk=8, first_ids=(5, 6)).repetition.size
    8
    """

    plus: bool = attrs.field(default=False, validator=boolean)
    chunk: int = attrs.field(default=2000, validator=count)
    overlap: int = attrs.field(default=8, validator=natural)
    sinks: int = attrs.field(default=4, validator=natural)
    first_ids: tuple[int, ...] = attrs.field(default=(), converter=_as_tuple, validator=_token_ids)
    later_ids: tuple[int, ...] = attrs.field(default=(), converter=_as_tuple, validator=_token_ids)
    answer_ids: tuple[int, ...] = attrs.field(default=(), converter=_as_tuple, validator=_token_ids)

    window: ClassVar[int] = 1
    prefill_only: ClassVar[bool] = True

    @property
    def needs(self) -> tuple[str, ...]:
        """The output projection, for the norms of projected values."""
        return ("output_weight",) if self.plus else ()

    @property
    def repetition(self) -> Repetition:
        """How prompts are repeated."""
        return Repetition(
            size=self.chunk,
            overlap=self.overlap,
            first=self.first_ids,
            later=self.later_ids,
            answer=self.answer_ids,
            residual=self.plus,
        )

    def accumulate(self, observation: Observation) -> Float32[Tensor, "B H S"]:
        """Return the scores so far; positions that were not repeated have 0."""
        if observation.state is not None:
            return observation.state
        shape = (*observation.queries.shape[:2], observation.length)
        return observation.keys.new_zeros(shape, dtype=torch.float32)

    def repeated(self, repeated: Repeated) -> Float32[Tensor, "B H C"]:
        """Return the scores of a chunk, the same for all query heads of a group.

        Raises UnsupportedModelError with `plus` if the output projection is not known.
        """
        observation = _shown(repeated, self.sinks)
        groups = observation.queries.shape[1] // observation.keys.shape[1]
        sinks = observation.length - observation.window - (repeated.end - repeated.first)
        if self.plus:
            largest = _largest_by_norms(observation, repeated.residual)
        else:
            largest = largest_attention(
                observation.queries,
                observation.keys,
                1,
                scaling=observation.scaling,
                softcap=observation.softcap,
                sinks=observation.sink_logits,
            ).largest
        return largest[..., sinks:].repeat_interleave(groups, 1)

    def score(self, observation: Observation, reduce: Reduce) -> Float32[Tensor, "B H S"]:
        """Return the scores that repeating has given; `reduce` has nothing to fold."""
        return self.accumulate(observation).clone()


def _shown(repeated: Repeated, sinks: int) -> Observation:
    """Return an observation of the first `sinks` positions, the chunk, and what repeats it."""
    whole = repeated.observation
    first = slice(0, min(sinks, repeated.first))
    parts = first, slice(repeated.first, repeated.end), slice(whole.length - whole.window, None)
    keys, values, positions = (
        torch.cat([table[:, :, part] for part in parts], 2)
        for table in (whole.keys, whole.values, whole.positions)
    )
    return attrs.evolve(whole, keys=keys, values=values, positions=positions, state=None)


def _largest_by_norms(
    observation: Observation, residual: Float[Tensor, "B Q"] | None
) -> Float32[Tensor, "B N P"]:
    """Return the largest a_ti ||W_h v_i|| / ||x_t|| of each position before the Q tokens."""
    factors = observation.output_factors
    if factors is None or residual is None:
        raise UnsupportedModelError(
            "scorer 'kvzip' with plus=True needs the output projection and the residual stream, "
            "which are not known here. Use plus=False."
        )
    heads, kv_heads = observation.queries.shape[1], observation.keys.shape[1]
    past, window = observation.length - observation.window, observation.window
    weights = residual.float().clamp_min(LEAST).reciprocal()[:, None, :, None]
    largest = observation.keys.new_zeros(len(residual), heads, past, dtype=torch.float32)
    step = rows_per_block(largest[:, :, 0].numel() * observation.length, largest.device)
    for rows in spans(0, window, step):
        # Queries up to the last of these see no key behind it.
        seen = slice(0, past + rows.stop)
        part = attrs.evolve(
            observation,
            queries=observation.queries[:, :, rows],
            keys=observation.keys[:, :, seen],
            values=observation.values[:, :, seen],
            positions=observation.positions[:, :, seen],
        )
        weighed = part.attention[..., :past].mul_(weights[:, :, rows])
        torch.maximum(largest, weighed.amax(2), out=largest)
    values = observation.values[:, :, None, :past].float()
    sizes = (values @ factors.unflatten(0, (kv_heads, -1)).mT.float()).norm(dim=-1)
    scores: Tensor = largest.unflatten(1, (kv_heads, -1)).mul_(sizes).amax(2)
    return scores
