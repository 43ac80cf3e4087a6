"""The cache that a policy gives to transformers: `generate` uses it without knowing it."""

from __future__ import annotations

import copy
import os
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
)

from kvpolicy.cache.storage import Storage, StorageOption, storage_of
from kvpolicy.errors import CacheStateError, UnsupportedModelError
from kvpolicy.huggingface.attention.call import attach, between_graphs, decoder_config, detach
from kvpolicy.huggingface.layer import PolicyLayer
from kvpolicy.huggingface.model.fitting import fitting_rotaries
from kvpolicy.huggingface.model.ranks import ranks_of
from kvpolicy.huggingface.model.support import plain_layers, supported_config
from kvpolicy.huggingface.report import CacheReport, report_of
from kvpolicy.huggingface.session import CacheState
from kvpolicy.prefill import Prefill, PrefillPattern, pattern_of

if TYPE_CHECKING:
    from kvpolicy.policy import Policy

_NO_ROLLBACK = (
    "Assisted decoding and prompt look-up roll the cache back, and an eviction cannot be undone: "
    "generate without assistant_model and prompt_lookup_num_tokens."
)

_open: weakref.WeakSet[PolicyCache] = weakref.WeakSet()


class PolicyCache(Cache):
    """Keys and values of one conversation (or batch), evicted layer by layer as a policy says.

    It evicts when a prompt ends: at the end of every forward of more than one token. While it is
    in use the model's attention is observed; leaving `with`, or `kvpolicy.restore(model)`, brings
    the model back as found.

    Raises UnsupportedModelError, with the reason, if the model cannot be served exactly.
    """

    def __init__(
        self,
        policy: Policy,
        model: PreTrainedModel,
        *,
        prefill: Prefill | None = None,
        storage: StorageOption | None = None,
        bits: int | None = None,
    ) -> None:
        """Make an empty cache; nothing of the model changes if it is refused."""
        pattern = None if prefill is None else pattern_of(prefill)
        stored = storage_of(storage, bits)
        config = supported_config(model)
        layers, ranks = plain_layers(model, config), ranks_of(model, config)
        evicting = [at for at, layer in enumerate(layers) if type(layer) is DynamicLayer]
        rotaries = fitting_rotaries(policy, model, config, evicting)
        self.state = CacheState(policy, config, rotaries, pattern, ranks, stored)
        order = iter(range(len(evicting)))
        super().__init__(
            layers=[
                PolicyLayer(self.state, next(order)) if type(layer) is DynamicLayer else layer
                for layer in layers
            ]
        )
        self._last_updated = -1
        self._entered = 0
        self._model = weakref.ref(model)
        attach(config)
        _open.add(self)

    def __enter__(self) -> Self:
        """Observe the model's attention until the block is left."""
        attach(self.state.config)
        _open.add(self)
        self._entered += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Bring the model back as it was found, unless another open cache of it is alive."""
        self._entered -= 1
        if self._entered:
            return
        _open.discard(self)
        if not any(other.state.config is self.state.config for other in _open):
            detach(self.state.config)

    def __getstate__(self) -> dict[str, Any]:
        """Copy what is held, not the `with` blocks that it is in."""
        return vars(self) | {"_entered": 0}

    @property
    def policy(self) -> Policy:
        """The policy that evicts."""
        return self.state.policy

    @property
    def prefill(self) -> PrefillPattern | None:
        """By which pattern a first prompt is read; None: densely."""
        return self.state.prefill

    @property
    def storage(self) -> Storage | None:
        """How layers keep what they hold between two forwards; None: as it is."""
        return self.state.storage

    @property
    def policy_layers(self) -> list[PolicyLayer]:
        """The layers that evict; others (sliding windows, say) are transformers' own."""
        return [layer for layer in self.layers if isinstance(layer, PolicyLayer)]

    @property
    def positions(self) -> list[Int[Tensor, "B N K"]]:
        """The true positions that each layer holds: ascending, -1 beyond a head's length.

        Position p is the p-th real token of its own row, whatever padding stands before it.
        """
        return [_leftmost(_positions(layer)) for layer in self.layers]

    @property
    def nbytes(self) -> int:
        """Bytes really held by all layers, slack and positions included."""
        return self.report().nbytes

    def report(self) -> CacheReport:
        """Say what every layer has seen and holds; `print` it."""
        return report_of(self)

    @between_graphs
    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Add the new tokens of one layer; see `PolicyLayer.update`."""
        if layer_idx > self._last_updated >= 0:
            self._check_observed(self._last_updated)
        else:
            self.state.check()
            self._check_same_length()
        self._last_updated = layer_idx
        keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        self._prefetch_behind(layer_idx)
        return keys, values

    @between_graphs
    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return the sizes for the full layer that holds the most: they all share one mask."""
        if not isinstance(self.layers[layer_idx], PolicyLayer):
            sizes: tuple[int, int] = super().get_mask_sizes(query_length, layer_idx)
            return sizes
        longest = max(self.policy_layers, key=lambda layer: layer.held)
        return longest.get_mask_sizes(query_length)

    def reset(self) -> None:
        """Forget the conversation, a failed one too."""
        for layer in self.layers:
            layer.reset()
        self.state.failure, self._last_updated = None, -1

    def clone(self) -> PolicyCache:
        """Return a copy that goes its own way from here: another question on the same context."""
        twin = copy.deepcopy(self)
        _open.add(twin)
        return twin

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all that is held to a safetensors file, from which `kvpolicy.load` goes on.

        Raises CacheStateError, CacheFileError or InvalidComponentError; see `saving.save`.
        """
        from kvpolicy.huggingface.file.saving import save

        model = self._model()
        if model is None:
            raise CacheStateError("the model of this cache is gone, by which its file is known.")
        save(self, model, path)

    def activate_past_recording(self) -> NoReturn:
        """Refuse: what a rejected draft evicted could not be brought back.

        Raises UnsupportedModelError; transformers calls this for assisted decoding.
        """
        raise UnsupportedModelError(_NO_ROLLBACK)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last -`tokens_to_remove` tokens; what was evicted stays evicted.

        Raises UnsupportedModelError for a positive count: a length, with which older transformers
        roll back after assisted decoding.
        """
        if tokens_to_remove > 0:
            raise UnsupportedModelError(
                f"crop takes minus the number of tokens to forget, not the length "
                f"{tokens_to_remove}. {_NO_ROLLBACK}"
            )
        self._check_crop(-tokens_to_remove)
        super().crop(tokens_to_remove)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence of the batch, in place."""
        if self._batch:
            self._take_rows(torch.arange(self._batch).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Int[Tensor, " rows"]) -> None:
        """Keep only these sequences of the batch, in this order."""
        if self._batch:
            self._take_rows(torch.arange(self._batch)[indices.cpu()])

    @property
    def _batch(self) -> int:
        return self.policy_layers[0].batch

    def _take_rows(self, rows: Any) -> None:
        # Linear layers only know how to be reordered, which repeats and leaves out as well.
        for layer in self.layers:
            layer.reorder_cache(rows)

    def _check_crop(self, count: int) -> None:
        """Find out whether every layer can be cropped before one of them is."""
        for index, layer in enumerate[Any](self.layers):
            if isinstance(layer, PolicyLayer):
                layer.check_crop(count)
            elif isinstance(layer, LinearAttentionLayer):
                raise CacheStateError(
                    f"cannot crop: layer {index} is linear attention, whose state has no way back. "
                    "Start over with cache.reset()."
                )
            elif isinstance(layer, DynamicSlidingWindowLayer) and (
                layer.get_seq_length() >= layer.sliding_window
            ):
                raise CacheStateError(
                    f"cannot crop: layer {index} holds only its sliding window of "
                    f"{layer.sliding_window} tokens. Start over with cache.reset()."
                )

    def _prefetch_behind(self, layer_idx: int) -> None:
        """Begin to bring the layer that evicts next; behind the last comes the first."""
        if self.state.storage is not None:
            layers = [*self.layers[layer_idx + 1 :], *self.layers[:layer_idx]]
            behind = (layer for layer in layers if isinstance(layer, PolicyLayer))
            if (layer := next(behind, None)) is not None:
                layer.prefetch()

    def _check_observed(self, layer_idx: int) -> None:
        """Refuse to go on where a layer's keys never came to its attention."""
        layer = self.layers[layer_idx]
        if isinstance(layer, PolicyLayer) and layer.is_unobserved:
            raise UnsupportedModelError(
                f"attention layer {layer_idx} changed its keys after the cache gave them out (as "
                "latent attention does), or belongs to another model than this cache: it cannot be "
                "observed."
            )

    def _check_same_length(self) -> None:
        """Refuse to begin a forward after one that stopped on its way."""
        counts = {
            layer.get_seq_length() for layer in self.layers if isinstance(layer, CacheLayerMixin)
        }
        if len(counts) > 1 or any(layer.is_unobserved for layer in self.policy_layers):
            raise CacheStateError(
                f"an earlier forward stopped on its way: layers have seen {min(counts)} to "
                f"{max(counts)} tokens. Call cache.reset() and start over."
            )


def restore(model: Any) -> None:
    """Bring a model's attention back as it was found; its open caches count as closed."""
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"kvpolicy.restore needs a transformers PreTrainedModel, not a {type(model).__name__}."
        )
    config = decoder_config(model)
    for cache in [each for each in _open if each.state.config is config]:
        _open.discard(cache)
    detach(config)


def _positions(layer: Any) -> Int[Tensor, "B N K"]:
    if isinstance(layer, PolicyLayer):
        return layer.positions
    keys: Tensor | None = getattr(layer, "keys", None)
    if keys is None:
        return torch.empty((0, 0, 0), dtype=torch.long)
    seen = layer.get_seq_length()
    return torch.arange(seen - keys.shape[-2], seen).expand(*keys.shape[:2], -1)


def _leftmost(positions: Int[Tensor, "B N K"]) -> Int[Tensor, "B N K"]:
    """Move padding behind the positions; storage has it before them."""
    padding = positions < 0
    last = torch.iinfo(torch.long).max
    ordered = positions.masked_fill(padding, last).sort(-1).values
    return ordered.masked_fill(ordered == last, -1)
