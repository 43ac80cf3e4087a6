"""The cache that a policy gives to transformers: `generate` uses it without knowing it."""

from __future__ import annotations

import copy
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NoReturn, Self

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

from kvpolicy.cache.storage.protocol import AnyStorage
from kvpolicy.errors import CacheStateError, UnsupportedModelError
from kvpolicy.huggingface.attention.attach import attachment
from kvpolicy.huggingface.attention.graphs import between_graphs
from kvpolicy.huggingface.file.saving import save
from kvpolicy.huggingface.layer import PolicyLayer
from kvpolicy.huggingface.model.config import decoder_config
from kvpolicy.huggingface.model.fit import fitting_rotaries
from kvpolicy.huggingface.model.ranks import ranks_of
from kvpolicy.huggingface.model.support import plain_layers, supported_config
from kvpolicy.huggingface.report import CacheReport, report_of
from kvpolicy.huggingface.session import Session
from kvpolicy.pipeline.pipeline import Pipeline
from kvpolicy.pipeline.title import Title
from kvpolicy.prefill.pattern import PrefillPattern

_NO_ROLLBACK = (
    "Assisted decoding and prompt look-up roll the cache back, and an eviction cannot be undone. "
    "Generate without assistant_model and prompt_lookup_num_tokens."
)

_open: weakref.WeakSet[PolicyCache] = weakref.WeakSet()


class PolicyCache(Cache):
    """Keys and values of one conversation (or batch), evicted layer by layer as a policy says.

    It evicts when a prompt ends: at the end of every forward of more than one token. While it is
    open the model's attention is observed. Leaving `with`, or `kvpolicy.restore(model)`, closes it.

    Raises UnsupportedModelError, with the reason, if the model cannot be served exactly.
    """

    def __init__(
        self,
        policy: Pipeline,
        model: PreTrainedModel,
        *,
        prefill: PrefillPattern | None = None,
        storage: AnyStorage | None = None,
        storage_title: Title | None = None,
    ) -> None:
        """Make an empty cache; nothing of the model changes if it is refused."""
        config = supported_config(model)
        layers, ranks = plain_layers(model, config), ranks_of(model, config)
        evicting = [at for at, layer in enumerate(layers) if type(layer) is DynamicLayer]
        self._attachment = attachment(model)
        self.session = Session(
            policy=policy,
            config=config,
            attention=self._attachment.attention,
            rotaries=fitting_rotaries(policy, model, config, evicting),
            prefill=prefill,
            storage=storage,
            storage_title=storage_title,
            ranks=ranks,
        )
        order = iter(range(len(evicting)))
        super().__init__(
            layers=[
                PolicyLayer(self.session, next(order)) if type(layer) is DynamicLayer else layer
                for layer in layers
            ]
        )
        self._last_updated = -1
        self._entered = 0
        self._model = weakref.ref(model)
        self._attachment.open(self)
        _open.add(self)

    def __enter__(self) -> Self:
        """Observe the model's attention until the block is left."""
        self._attachment.open(self)
        _open.add(self)
        self._entered += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the cache; the last open cache leaves the model's attention as it was found."""
        self._entered -= 1
        if not self._entered:
            self.close()

    def close(self) -> None:
        """Stop observing the model's attention; entering the cache by `with` opens it again."""
        _open.discard(self)
        self._attachment.close(self)

    def __getstate__(self) -> dict[str, Any]:
        """Copy what is held, not the `with` blocks that it is in."""
        return vars(self) | {"_entered": 0}

    def __deepcopy__(self, memo: dict[int, Any]) -> PolicyCache:
        """Return an open copy of the same policy and model."""
        twin: PolicyCache = object.__new__(type(self))
        memo[id(self)] = twin
        shared = {"_attachment": self._attachment, "_model": self._model}
        copied = {name: value for name, value in vars(self).items() if name not in shared}
        vars(twin).update(copy.deepcopy(copied, memo) | shared | {"_entered": 0})
        self._attachment.open(twin)
        _open.add(twin)
        return twin

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
            self._check_ready()
        self._last_updated = layer_idx
        try:
            keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
            if self.session.storage is not None:
                self._prefetch_behind(layer_idx)
        except BaseException as error:
            self.session.guard.failed(error)
            raise
        return keys, values

    @between_graphs
    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return the sizes for the full layer that holds the most: they all share one mask."""
        self.session.masks.expect()
        if not isinstance(self.layers[layer_idx], PolicyLayer):
            sizes: tuple[int, int] = super().get_mask_sizes(query_length, layer_idx)
            return sizes
        policy_layers = self.policy_layers
        held = max(layer.held for layer in policy_layers)
        return held + query_length, policy_layers[0].seen - held

    def reset(self) -> None:
        """Forget the conversation, a failed one too."""
        for layer in self.layers:
            layer.reset()
        self.session.together.clear()
        self.session.guard.clear()
        self._last_updated = -1

    def clone(self) -> PolicyCache:
        """Return a copy that goes its own way from here: another question on the same context."""
        return copy.deepcopy(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all that is held to a safetensors file, from which `kvpolicy.load` goes on.

        Raises CacheStateError, CacheFileError or InvalidComponentError; see `kvpolicy.save`.
        """
        model = self._model()
        if model is None:
            raise CacheStateError(
                "the model of this cache no longer exists, and a file is saved for one model. Keep "
                "the model until the cache is saved."
            )
        save(self.layers, self.session, model, path)

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
        with self._changing():
            super().crop(tokens_to_remove)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence of the batch, in place."""
        if self._batch:
            self._take_rows(torch.arange(self._batch).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Int[Tensor, " rows"]) -> None:
        """Keep only these sequences of the batch, in this order."""
        if self._batch:
            self._take_rows(torch.arange(self._batch)[indices.cpu()])

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep, repeat or reorder the sequences of the batch."""
        self._take_rows(beam_idx)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Refuse to go on after an exception that leaves this block."""
        try:
            yield
        except BaseException as error:
            self.session.guard.failed(error)
            raise

    @property
    def _batch(self) -> int:
        return self.policy_layers[0].batch

    def _take_rows(self, rows: Any) -> None:
        # Linear layers can be reordered only; an order may repeat rows and leave rows out.
        with self._changing():
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
        """Begin to bring the layer that evicts next; the first layer follows the last."""
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

    def _check_ready(self) -> None:
        """Refuse to begin a forward after one that stopped on its way, or on a closed cache."""
        self.session.guard.check()
        self._attachment.check(self, self.session.config._attn_implementation or "eager")
        counts = {
            layer.get_seq_length() for layer in self.layers if isinstance(layer, CacheLayerMixin)
        }
        if len(counts) > 1 or any(layer.forward is not None for layer in self.policy_layers):
            raise CacheStateError(
                f"an earlier forward stopped on its way: layers have seen {min(counts)} to "
                f"{max(counts)} tokens. Call cache.reset() and start over."
            )


def restore(model: Any) -> None:
    """Close every open cache of a model, which brings its attention back as it was found."""
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"kvpolicy.restore needs a transformers PreTrainedModel, not a {type(model).__name__}."
        )
    config = decoder_config(model)
    for cache in [each for each in _open if each.session.config is config]:
        cache.close()


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
