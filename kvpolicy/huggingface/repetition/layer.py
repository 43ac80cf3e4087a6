"""One layer in a second pass: attention sees what it holds and the tokens that repeat a chunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
from jaxtyping import Float
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from kvpolicy.cache.attention.keys import AttendedKeys, attended
from kvpolicy.cache.attention.uneven import attend_uneven
from kvpolicy.cache.eviction.repetition import behind, put_state
from kvpolicy.cache.eviction.views import views_of
from kvpolicy.cache.memory.contents import Contents
from kvpolicy.errors import CacheStateError
from kvpolicy.huggingface.attention.arguments import Call
from kvpolicy.huggingface.attention.draft_masks import causal_behind
from kvpolicy.huggingface.attention.marks import mark
from kvpolicy.huggingface.readings import Reading
from kvpolicy.huggingface.session import Session
from kvpolicy.huggingface.showing import shown_by
from kvpolicy.observation.logits import Logits
from kvpolicy.observation.repetition import Chunk, Repeated
from kvpolicy.pipeline.repetition import repeated_state


@attrs.frozen(kw_only=True, eq=False)
class Passage:
    """A chunk of some rows, whose last `count` tokens are repeated, as all layers read it.

    `residual` returns the norms of the residual stream before an attention module.
    """

    session: Session
    rows: slice
    count: int
    chunk: Chunk
    residual: Callable[[nn.Module], Float[Tensor, "b Q"] | None]


class RepeatingLayer(DynamicLayer):
    """Hands out what a layer of a cache holds, with new tokens behind it that nobody keeps."""

    def __init__(self, passage: Passage, layer: int, contents: Contents) -> None:
        """Read `contents`, those of layer number `layer`, and write to their state only."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._passage, self._layer, self._contents = passage, layer, contents
        self._call: RepeatingCall | None = None

    def get_seq_length(self) -> int:
        """Return the tokens that the rows have seen."""
        seen: int = self._contents.slots.seen[self._passage.rows.start]
        return seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the sizes of a plainly causal mask; each layer makes its own of it."""
        slots, ragged = self._contents.slots, self._contents.ragged
        row = self._passage.rows.start
        held = slots.lengths[row] + (0 if ragged is None else int(ragged.lengths[row].max()))
        return held + query_length, self.get_seq_length() - held

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the rows that are held and the new ones behind them, marked for the attention."""
        passage = self._passage
        twin = behind(self._contents, passage.rows, key_states, value_states)
        keys = attended(twin, passage.session.slot_rotary(self._layer))
        self._call = RepeatingCall(
            passage=passage, layer=self._layer, source=self._contents, contents=twin, keys=keys
        )
        return mark(keys.dense, self._call), twin.values.view


@attrs.define(kw_only=True, eq=False)
class RepeatingCall:
    """Listens to the attention call of one layer; see `kvpolicy.huggingface.attention.listener`."""

    passage: Passage
    layer: int
    source: Contents
    contents: Contents | None
    keys: AttendedKeys | None
    moved: None = None
    rest: None = None

    @property
    def session(self) -> Session:
        """What all layers of the cache share."""
        return self.passage.session

    @property
    def seen(self) -> int:
        """The tokens that the rows have read, those that repeat a chunk included."""
        return self._own()[0].slots.seen[0]

    @property
    def has_evicted(self) -> bool:
        """Whether the layer holds fewer tokens than it has seen."""
        return self._own()[0].held < self.seen

    def failed(self, error: BaseException) -> None:
        """Do nothing: nothing of the cache has changed."""

    def learn_expanded(self, keys: Float[Tensor, "B H S D"], values: Float[Tensor, ...]) -> None:
        """Do nothing: models with latents are refused."""

    def mask_for(self, module: nn.Module, mask: Any, query: Float[Tensor, "B H Q D"]) -> Any:
        """Return a mask by which the new tokens see all that is held, and what is before them."""
        contents, _ = self._own()
        if not contents.is_plain:
            return None
        return causal_behind(mask, contents.slots, query, self.session.attention)

    def seen_by(self, query: Float[Tensor, "B H Q D"]) -> Float[Tensor, "B H Q D"]:
        """Return the model's queries, rotated to their slots if the keys are."""
        _, keys = self._own()
        return query if keys.queries is None else keys.queries.of_last(query)

    def attend(
        self, call: Call, query: Float[Tensor, "B H Q D"], mask: Any, logits: Logits
    ) -> Float[Tensor, "B Q H Dv"] | None:
        """Attend to uneven heads and a remainder; None leaves it to the model's own function."""
        contents, keys = self._own()
        if contents.is_plain:
            return None
        call.refuse_what_is_not_computed(contents.biased)
        return attend_uneven(query, contents, keys, logits)

    def observe(self, module: nn.Module, query: Float[Tensor, "B H Q D"], logits: Logits) -> None:
        """Let the scorer see the chunk, and put what it learns into the state of the layer."""
        contents, keys = self._own()
        session, (first, end, _), rows = self.session, self.passage.chunk, self.passage.rows
        new, queries = query.shape[2], self.seen_by(query)
        reading = Reading(module, queries, logits, new, has_gradients=False)
        shown = shown_by(session, self.layer, contents, [reading], queries, None)
        for view in views_of(contents, keys)[0]:
            observation = shown.observation(session.policy, view, None)
            start = observation.length - new - self.passage.count
            repeated = Repeated(
                observation=observation,
                first=start + first,
                end=start + end,
                residual=self.passage.residual(module),
            )
            state = repeated_state(session.policy, repeated)
            put_state(self.source, rows, view, start + first, state)
        self.contents = self.keys = None

    def _own(self) -> tuple[Contents, AttendedKeys]:
        if self.contents is None or self.keys is None:
            raise CacheStateError(f"attention layer {self.layer} was repeated already.")
        return self.contents, self.keys
