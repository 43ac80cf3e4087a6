"""What the layers of one cache share, and what never changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
from torch import Tensor
from transformers import PreTrainedConfig

from kvpolicy.cache.eviction.spans import BatchSpans
from kvpolicy.cache.eviction.spare import Spare
from kvpolicy.cache.eviction.together import Together
from kvpolicy.cache.storage.protocol import AnyStorage
from kvpolicy.huggingface.attention.mask_memo import MaskMemo
from kvpolicy.huggingface.drafts import Drafts
from kvpolicy.huggingface.guard import Guard
from kvpolicy.huggingface.model.ranks import Ranks
from kvpolicy.huggingface.model.rotary_positions import RotaryPositions
from kvpolicy.huggingface.other_layers import OtherLayers
from kvpolicy.huggingface.readings import JoinedWeights, queries_to_keep
from kvpolicy.huggingface.repetition.second_pass import SecondPass
from kvpolicy.observation.rotary import Rotary
from kvpolicy.pipeline.pipeline import Pipeline
from kvpolicy.pipeline.title import Title
from kvpolicy.prefill.pattern import PrefillPattern

ANOTHER_MODEL = (
    "this cache was made for another model than the one that was called with it. Make a cache of "
    "its own for each model: policy.cache(model)."
)


@attrs.frozen(kw_only=True, eq=False)
class Session:
    """One per cache: its policy and options, and the facts of its model.

    `attention` is the name of the model's attention implementation. `rotaries` has an entry for
    every layer that evicts. `ranks` are the processes that share the model; None if one process has
    all of it.
    """

    policy: Pipeline
    config: PreTrainedConfig
    attention: str
    rotaries: Sequence[Rotary | None]
    readers: Sequence[Sequence[int]]
    """By layer that evicts: the indices of all layers that attend with its keys, itself first."""
    modules: frozenset[int]
    """The `id` of every module of the model; the cache holds a weak reference to the model."""
    prefill: PrefillPattern | None = None
    storage: AnyStorage | None = None
    storage_title: Title | None = None
    spans: BatchSpans | None = None
    ranks: Ranks | None = None
    is_latent: bool = False
    """Whether layers hold latents, of which the model makes the keys and values of all heads."""
    bias_extent: int | None = None
    """From which distance on the bias is 0 that the model adds by distance; None: it adds none."""
    guard: Guard = attrs.field(factory=Guard)
    masks: MaskMemo = attrs.field(factory=MaskMemo)
    drafts: Drafts = attrs.field(factory=Drafts)
    others: OtherLayers = attrs.field(factory=OtherLayers)
    rotary_positions: RotaryPositions | None = attrs.field()
    """None where no part of the policy computes with rotary positions."""
    together: Together = attrs.field()
    second_pass: SecondPass | None = attrs.field()
    """None where no prompt is repeated."""
    spare: Spare = attrs.field(factory=Spare)
    weights: JoinedWeights = attrs.field(factory=JoinedWeights)
    needs_output_weight: bool = attrs.field(init=False)
    """Whether the policy cannot do without the weight of the output projection."""

    @needs_output_weight.default
    def _asked_of_parts(self) -> bool:
        return "output_weight" in self.policy.needs

    @rotary_positions.default
    def _none_noted(self) -> RotaryPositions | None:
        return RotaryPositions.of(self.policy, self.rotaries)

    @together.default
    def _nobody_waits(self) -> Together:
        return Together(self.policy, self.num_layers)

    @second_pass.default
    def _if_the_scorer_asks(self) -> SecondPass | None:
        return SecondPass.of(self.policy)

    def __deepcopy__(self, memo: dict[int, Any]) -> Session:
        """Return a session of the same policy and model, for a copy of the cache."""
        self.guard.settle()
        twin = attrs.evolve(
            self,
            guard=Guard(),
            masks=MaskMemo(),
            drafts=Drafts(),
            others=OtherLayers(),
            spans=None if self.spans is None else self.spans.copied(),
            rotary_positions=RotaryPositions.of(self.policy, self.rotaries),
            together=Together(self.policy, self.num_layers),
            second_pass=SecondPass.of(self.policy),
            spare=Spare(),
        )
        twin.guard.failure = self.guard.failure
        return twin

    def begin(self, layers: Iterable[Any], *, patient: bool) -> None:
        """Begin a forward through these layers. Raises what `Guard.check` raises."""
        self.guard.check(patient=patient)
        self.masks.begin()
        self.spare.begin()
        self.others.note(layers)

    def failed(self, error: BaseException, *, unchanged: bool) -> None:
        """Learn that a forward failed: the cache refuses to go on, unless it is as it was before.

        `unchanged` says whether the layers that evict are. Others are given back what they held.
        """
        if not (unchanged and self.others.bring_back()):
            self.guard.failed(error)

    def clear(self) -> None:
        """Forget the conversation; what never changes stays."""
        self.together.clear()
        if self.second_pass is not None:
            self.second_pass.clear()
        self.spare.begin()
        self.drafts.end = None
        self.others.forget()
        if self.spans is not None:
            self.spans.clear()

    @contextmanager
    def first_prompt(self, given: Tensor | None, mask: Any) -> Iterator[None]:
        """Say in a block which first prompt it reads, ids or embeddings; None: it reads no first.

        Raises InvalidValueError, before any work, for spans that the prompt does not hold, and for
        protected spans that its budget does not hold.
        """
        spans = None if given is None else self.spans
        if spans is not None and given is not None:
            rows, tokens = given.shape[:2]
            is_mask = isinstance(mask, Tensor) and tuple(mask.shape) == (rows, tokens)
            spans.begin(self.policy, mask.sum(1).tolist() if is_mask else [tokens] * rows)
            spans.prompt = tokens
        try:
            yield
        finally:
            if spans is not None:
                spans.prompt = None

    def select_rows(self, rows: Tensor) -> None:
        """Keep, repeat or reorder the sequences of the batch."""
        if self.spans is not None:
            self.spans.select_rows(rows)

    @property
    def num_layers(self) -> int:
        """How many layers evict."""
        return len(self.rotaries)

    def queries_to_keep(self, seen: int, logits: int) -> int:
        """Return of how many last tokens layers that share keys compute queries; 0: of all.

        `seen` tokens were read, and the model computes the `logits` of the last ones.
        """
        return queries_to_keep(self.policy, seen, logits)

    def mask_sizes(self, seen: int, held: int, new: int) -> tuple[int, int]:
        """Return how many columns a mask needs for `new` tokens, and the token of the first.

        Layers have `seen` tokens and hold at most `held`. A model that adds a bias by distance
        asks for its columns here, too.
        """
        if self.bias_extent is not None:
            held = min(seen, max(held, self.bias_extent - 1))
        return held + new, seen - held

    def slot_rotary(self, layer: int) -> Rotary | None:
        """Return by what a layer's keys are rotated to their slots; None if they are not."""
        return self.rotaries[layer] if self.policy.slot_positions else None
