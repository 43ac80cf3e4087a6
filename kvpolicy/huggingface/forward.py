"""One layer in one forward: its attention call is observed, and it may evict."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import attrs
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor, nn

from kvpolicy.cache.attention.keys import AttendedKeys, attended
from kvpolicy.cache.attention.uneven import attend_uneven
from kvpolicy.cache.eviction.running_state import accumulate
from kvpolicy.cache.eviction.schedule import Schedule
from kvpolicy.cache.eviction.shown import Shown
from kvpolicy.cache.memory.contents import Contents
from kvpolicy.errors import InvalidValueError, UnsupportedModelError
from kvpolicy.huggingface.attention.arguments import Call
from kvpolicy.huggingface.attention.draft_masks import causal_behind
from kvpolicy.huggingface.attention.first_prompt import first_prompt
from kvpolicy.huggingface.attention.masks import fitted, plainly_causal
from kvpolicy.huggingface.drafts import Rest
from kvpolicy.huggingface.evicting import Evicting
from kvpolicy.huggingface.model.architectures import EXPANSION
from kvpolicy.huggingface.readings import Reading, joined_queries, shown_of
from kvpolicy.huggingface.repetition.second_pass import Ready, SecondPass
from kvpolicy.huggingface.session import ANOTHER_MODEL
from kvpolicy.huggingface.showing import shown_by
from kvpolicy.observation.logits import Logits
from kvpolicy.pipeline.doubts import collected

REFUSALS = (InvalidValueError, UnsupportedModelError)
"""Raised before a part of the policy has run, so that the new tokens can be taken back."""


@attrs.define(kw_only=True, eq=False)
class Forward(Evicting):
    """Listens to the attention call of one layer; nothing of it is saved.

    `seen` are the tokens that the layer has read and `held`
    the slots of the head that holds the most, new tokens included.
    """

    schedule: Schedule
    seen: int
    held: int
    keys: AttendedKeys | None
    """None once the queries have been observed."""
    undo: Callable[[], None] | None = None
    """Takes the new tokens back, in the first layer, until the queries are observed."""
    moved: tuple[Float[Tensor, "B N S D"], Float[Tensor, "B N S Dv"]] | None = None
    """Keys and values in place of those that were handed out, where padding moved to the left."""
    new_real: list[int] | None = None
    """How many new tokens of each row are real, where padding moved to the left."""
    real: Bool[Tensor, "B Q"] | None = None
    """Which new tokens are real; None if all are."""
    readers: int = 1
    """How many attention calls come with these keys, from as many layers of the model."""
    readings: list[Reading] = attrs.field(factory=list)
    """The calls that came so far."""
    rest: Rest | None = None
    """Drafts of the same forward, which are read when this prompt has been evicted."""
    decodes: bool = False
    """Whether the new tokens are drafts, which do not end a prompt."""
    density: Float64[Tensor, ""] | None = None
    """The share of query-key pairs that was computed; None if all were."""

    @property
    def has_evicted(self) -> bool:
        """Whether the layer holds fewer tokens than it has seen."""
        return self.held < self.seen

    def failed(self, error: BaseException) -> None:
        """Learn that the call failed: the cache refuses to go on, unless nothing was changed."""
        undo = self.undo if isinstance(error, REFUSALS) else None
        if undo is not None:
            undo()
        self.session.failed(error, unchanged=undo is not None)

    def mask_for(self, module: nn.Module, mask: Any, query: Float[Tensor, "B H Q D"]) -> Any:
        """Return the mask that all layers share, as it fits this layer's slots.

        Raises UnsupportedModelError for a module of another model, and InvalidValueError for a mask
        or for rotary positions that the slots cannot follow.
        """
        self._attended()
        if id(module) not in self.session.modules:
            raise UnsupportedModelError(ANOTHER_MODEL)
        contents = self._own()
        if self.session.drafts.end is not None:
            self.session.masks.check_plain(mask)
            self._check_spans(contents, query.shape[2])
            if not contents.is_plain:
                return None
            return causal_behind(mask, contents.slots, query, self.session.attention)
        if not self.readings:
            self._read_mask(contents, module, mask, query.shape[2])
        if not contents.is_plain:
            return None
        fit = fitted if self.moved is None else plainly_causal
        return fit(mask, contents.slots, query, self.session.attention)

    def _read_mask(self, contents: Contents, module: nn.Module, mask: Any, count: int) -> None:
        """Find out which new tokens are padding. Layers that share keys are asked once."""
        masks, slots = self.session.masks, contents.slots
        if self.session.second_pass is not None:
            self.session.second_pass.check_known()
        self.real = real = masks.new_real_tokens(
            mask, slots, count, held=self.held, seen=self.seen, policy=self.session.policy
        )
        if real is not None and contents.mark_padding(real, self.seen - count, masks.padding(real)):
            self.new_real = [count - pad for pad in masks.padding(real)]
        self._check_spans(contents, count)
        if (positions := self.session.rotary_positions) is not None:
            positions.follow(slots, count, self.new_real, self.session.guard.doubts)
        if self.new_real is not None:
            # Attention sees the rows where they are now: padding before all older tokens.
            self.keys = attended(contents, self.session.slot_rotary(self.layer))
            self.moved = (self.keys.dense, contents.values.view)
            if self.session.is_latent:
                self.moved = getattr(module, EXPANSION)(*self.moved)
                self.learn_expanded(*self.moved)

    def _check_spans(self, contents: Contents, count: int) -> None:
        if (spans := self.session.spans) is not None and not self.layer:
            spans.check(self.session.policy, contents.slots, read=self.seen, new=count)

    def learn_expanded(
        self, keys: Float[Tensor, "B H S D"], values: Float[Tensor, "B H S Dv"]
    ) -> None:
        """Learn what attention sees in place of the latents that were handed out."""
        self.keys = attrs.evolve(self._attended(), dense=keys, values=values)

    def seen_by(self, query: Float[Tensor, "B H Q D"]) -> Float[Tensor, "B H Q D"]:
        """Return the model's queries, rotated to their slots if the keys are."""
        keys = self._attended()
        return query if keys.queries is None else keys.queries.of_last(query)

    def attend(
        self, call: Call, query: Float[Tensor, "B H Q D"], mask: Any, logits: Logits
    ) -> Float[Tensor, "B Q H Dv"] | None:
        """Attend to uneven heads, a remainder, or the blocks of a first prompt that are chosen.

        Returns None otherwise. Raises UnsupportedModelError for what such attention lacks.
        """
        contents, pattern = self._own(), self.session.prefill
        if not contents.is_plain:
            call.refuse_what_is_not_computed(contents.biased)
            return attend_uneven(query, contents, self._attended(), logits)
        if pattern is None or self.seen > query.shape[2]:
            return None
        keys = self._attended()
        values = contents.values.view if keys.values is None else keys.values
        slots, masks, rows = contents.slots, self.session.masks, (query, keys.dense, values)
        prompt = first_prompt(
            pattern, call, rows, mask, logits, slots=slots, masks=masks, layer=self.layer
        )
        if prompt is None:
            return None
        self.density = prompt.density
        return prompt.output

    def observe(self, module: nn.Module, query: Float[Tensor, "B H Q D"], logits: Logits) -> None:
        """Take note of the queries that just attended.

        Once all layers that attend with these keys have done so, evict where the policy says so.
        """
        session, keys, self.undo = self.session, self._attended(), None
        session.others.forget()
        contents, runs = self._own(), session.policy.running_scorer is not None
        last = None if runs or self.readers == 1 else session.policy.window
        kept = (query if last is None else query[:, :, -last:]).detach()
        self.readings.append(Reading(module, kept, logits, query.shape[2], query.requires_grad))
        if len(self.readings) < self.readers:
            return
        held, ragged = contents.keys.buffer, contents.ragged
        rows = [held] if ragged is None else [held, ragged.keys]
        gradients = [each.has_gradients for each in self.readings]
        needs_gradients = any(gradients) or any(each.requires_grad for each in rows)
        # Backward passes need keys and values unmoved; a storage compares rows by their place.
        in_place = not needs_gradients and session.storage is None
        readings: Sequence[Reading] = self.readings
        query = readings[0].queries
        if self.readers > 1:
            readings = shown_of(readings, session.policy, self.seen)
            query = joined_queries(readings, contents.slots.heads)
        decoded = self.decodes or (self.readings[0].count == 1 and self.seen > 1)
        queries = self.schedule.queries_if_due(query, decoded=decoded)
        due: Shown | None = None
        if runs or queries is not None:
            seen = self.seen_by(query) if runs else query
            shown = shown_by(session, self.layer, contents, readings, seen, self.new_real)
            with collected(session.guard.doubts), torch.set_grad_enabled(needs_gradients):
                if runs:
                    accumulate(session.policy, contents, keys, shown)
                if queries is not None:
                    due = attrs.evolve(shown, queries=self.seen_by(queries))
        self.keys = None
        self.readings.clear()
        finish = partial(
            self.finish, keys, in_place=in_place, gradients=needs_gradients,
            changed=self.moved is not None,
        )  # fmt: skip
        if session.second_pass is None:
            finish(due)
        else:
            self._after_a_second_pass(session.second_pass, module, due, finish)

    def _after_a_second_pass(
        self,
        second_pass: SecondPass,
        module: nn.Module,
        due: Shown | None,
        finish: Callable[[Shown | None], None],
    ) -> None:
        """Finish at once, or when the model has repeated the prompt, if something must go."""
        contents = self._own()
        if not self.layer:
            self.schedule.note(second_pass.new_ids(self.real))
        if due is None or self.fits:
            finish(due)
            return
        # A view would keep the queries of the whole prompt.
        few = attrs.evolve(due, queries=due.queries.clone())
        second_pass.wait(self.layer, Ready(module, contents, partial(finish, few)))

    def _attended(self) -> AttendedKeys:
        if self.keys is None:
            raise UnsupportedModelError(
                f"attention layer {self.layer} attends twice with the same keys; policies are "
                "shown one attention only."
            )
        return self.keys
