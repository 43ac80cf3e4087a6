"""The cache that a policy gives to transformers: `generate` uses it without knowing it."""

from __future__ import annotations

import copy
import os
import weakref
from typing import Any, ClassVar, NoReturn, Self

from jaxtyping import Int
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from kvpolicy.cache.eviction.spans import BatchSpans
from kvpolicy.cache.storage.protocol import AnyStorage
from kvpolicy.errors import CacheFileError, InvalidValueError
from kvpolicy.huggingface import checks
from kvpolicy.huggingface.attention.graphs import between_graphs
from kvpolicy.huggingface.file.saving import save
from kvpolicy.huggingface.hybrid import reset_layers
from kvpolicy.huggingface.layer import PolicyLayer
from kvpolicy.huggingface.model.adapters import plain_model
from kvpolicy.huggingface.opening import opened
from kvpolicy.huggingface.positions import positions_of
from kvpolicy.huggingface.prefetching import prefetch_behind
from kvpolicy.huggingface.read_tokens import ReadTokens
from kvpolicy.huggingface.report import CacheReport, holdings, report_of
from kvpolicy.notebook import table
from kvpolicy.pipeline.pipeline import Pipeline
from kvpolicy.pipeline.title import Title
from kvpolicy.prefill.pattern import PrefillPattern


class PolicyCache(Cache):
    """Keys and values of one conversation (or batch), evicted layer by layer as a policy says.

    It evicts when a prompt ends: at the end of every forward of more than one token. While open it
    observes the model's attention. Leaving `with`, or `kvpolicy.restore(model)`, closes it.

    Raises UnsupportedModelError, with the reason, if the model cannot be served exactly.
    """

    layer_class: ClassVar[type[PolicyLayer]] = PolicyLayer
    is_observed = False

    def __init__(
        self,
        policy: Pipeline,
        model: nn.Module,
        *,
        prefill: PrefillPattern | None = None,
        storage: AnyStorage | None = None,
        storage_title: Title | None = None,
        spans: BatchSpans | None = None,
    ) -> None:
        """Make an empty cache; nothing of the model changes if it is refused."""
        inner: PreTrainedModel = plain_model(model)
        self.session, self._attachment, layers = opened(
            policy, inner, self.layer_class,
            prefill=prefill, storage=storage, storage_title=storage_title, spans=spans,
        )  # fmt: skip
        super().__init__(layers=layers)
        self.read_tokens = ReadTokens()
        self._last_updated, self._entered = -1, 0
        self._model = weakref.ref(inner)
        self._attachment.open(self)

    def __enter__(self) -> Self:
        """Observe the model's attention until the block is left."""
        self._attachment.open(self)
        self._entered += 1
        return self

    def __exit__(self, *raised: object) -> None:
        """Close the cache; the last open cache leaves the model's attention as it was found."""
        self._entered -= 1
        if not self._entered:
            self.close()

    def close(self) -> None:
        """Stop observing the model's attention; entering the cache by `with` opens it again."""
        self._attachment.close(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> PolicyCache:
        """Return an open copy of the same policy and model."""
        twin: PolicyCache = object.__new__(type(self))
        memo[id(self)] = twin
        shared = {"_attachment": self._attachment, "_model": self._model}
        copied = {name: value for name, value in vars(self).items() if name not in shared}
        vars(twin).update(copy.deepcopy(copied, memo) | shared | {"_entered": 0})
        self._attachment.open(twin)
        return twin

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Refuse `pickle`, `torch.save` and `copy.copy`: a cache belongs to its model.

        Raises CacheFileError.
        """
        raise CacheFileError(checks.NO_PICKLE)

    @property
    def policy(self) -> Pipeline:
        """The policy that evicts."""
        return self.session.policy

    @property
    def prefill(self) -> PrefillPattern | None:
        """By which pattern a first prompt is read; None: densely."""
        return self.session.prefill

    @property
    def storage(self) -> AnyStorage | None:
        """How layers keep what they hold between two forwards; None: as it is."""
        return self.session.storage

    @property
    def policy_layers(self) -> list[PolicyLayer]:
        """The layers that evict; others (sliding windows, say) are transformers' own."""
        return [layer for layer in self.layers if isinstance(layer, PolicyLayer)]

    @property
    def positions(self) -> list[Int[Tensor, "B N K"]]:
        """The true positions that each layer holds: ascending, -1 beyond a head's length.

        Position p is the p-th real token of its own row, whatever padding stands before it.
        """
        return [positions_of(layer) for layer in self.layers]

    @property
    def nbytes(self) -> int:
        """Bytes really held by all layers, slack and positions included."""
        return self.report().nbytes

    @property
    def seen(self) -> int:
        """How many tokens were read, padding included."""
        return int(self.get_seq_length())

    @property
    def batch_size(self) -> int:
        """The sequences that are held; 0 before the first prompt."""
        return self.policy_layers[0].batch

    def check_room(self, new: int, decoded: int) -> None:
        """Accept any number of new tokens, and of tokens that are decoded behind them."""

    def report(self) -> CacheReport:
        """Say what every layer has seen and holds; `print` it."""
        return report_of(self)

    def __repr__(self) -> str:
        """Return the policy, the tokens seen, the positions held and the bytes."""
        said = ", ".join(f"{name} {value}" for name, value in holdings(self.report()).items())
        return f"<{type(self).__name__}: {said}, {self.policy!r}>"

    def _repr_html_(self) -> str:
        """Return a small table, for notebooks."""
        return table({"policy": repr(self.policy)} | holdings(self.report()))

    @between_graphs
    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add the new tokens of one layer; see `PolicyLayer.update`."""
        if layer_idx > self._last_updated >= 0:
            checks.check_observed(self.layers, self._last_updated)
        else:
            self._attachment.check(self)
            self.session.begin(self.layers, patient=key_states.shape[-2] == 1)
            checks.check_whole(self.layers, key_states.shape[0])
        try:
            keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
            if self.session.storage is not None:
                prefetch_behind(self.layers, layer_idx)
        except BaseException as error:
            # An InvalidValueError is raised before the layer is written to.
            first = self.layers[layer_idx] is self.policy_layers[0]
            self.session.failed(error, unchanged=first and isinstance(error, InvalidValueError))
            raise
        self._last_updated = layer_idx
        return keys, values

    @between_graphs
    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return the sizes for the full layer that holds the most: they all share one mask."""
        if getattr(model := self._model(), "training", False):
            checks.check_training(model)
        self.session.masks.expect()
        if not isinstance(layer := self.layers[layer_idx], PolicyLayer):
            return super().get_mask_sizes(query_length, layer_idx)
        held = max(each.held for each in self.policy_layers)
        return self.session.mask_sizes(layer.seen, held, query_length)

    def reset(self) -> None:
        """Forget the conversation, a failed one too."""
        with self.session.guard.changing():
            reset_layers(self.layers)
            self.session.clear()
            self.read_tokens.clear()
            self._last_updated = -1
        self.session.guard.clear()

    def clone(self) -> PolicyCache:
        """Return a copy that goes its own way from here: another question on the same context."""
        return copy.deepcopy(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all that is held to a safetensors file, from which `kvpolicy.load` goes on.

        Raises CacheStateError, CacheFileError or InvalidComponentError; see `kvpolicy.save`.
        """
        save(self.layers, self.session, self._model(), path)

    def activate_past_recording(self) -> None:
        """Let windows go back, for drafts. Raises UnsupportedModelError without `generate`."""
        self.session.drafts.check_end()
        super().activate_past_recording()  # type: ignore[no-untyped-call]

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last -`tokens_to_remove` tokens; what was evicted stays evicted.

        Raises InvalidValueError for anything but minus a count, UnsupportedModelError for lengths.
        """
        checks.check_crop(self.layers, tokens_to_remove)
        with self.session.guard.changing():
            super().crop(tokens_to_remove)
            self.read_tokens.truncate(self.seen)

    def batch_repeat_interleave(self, repeats: Any) -> None:
        """Repeat every sequence of the batch. Raises InvalidValueError for no count."""
        self._take_rows(checks.repeated_rows(repeats, self.batch_size))

    def batch_select_indices(self, indices: Any) -> None:
        """Keep only these sequences, by their numbers or a mask, in this order.

        Raises InvalidValueError for others than it has, before anything is changed.
        """
        self._take_rows(checks.selected_rows(indices, self.batch_size))

    def reorder_cache(self, beam_idx: Any) -> None:
        """Keep, repeat or reorder the sequences. Raises InvalidValueError for others."""
        self._take_rows(checks.checked_rows(beam_idx, self.batch_size))

    def _take_rows(self, rows: Any) -> None:
        # Linear layers can be reordered only; an order may repeat rows and leave rows out.
        with self.session.guard.changing():
            for layer in self.layers:
                layer.reorder_cache(rows)
            self.read_tokens.select_rows(rows)
            self.session.select_rows(rows)
