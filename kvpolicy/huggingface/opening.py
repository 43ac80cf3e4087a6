"""What a new cache is made of: its session, empty layers, and where attention is observed."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel, __version__
from transformers.cache_utils import LinearAttentionLayer

from kvpolicy.errors import InvalidValueError, UnsupportedModelError
from kvpolicy.huggingface.attention.attach import Attachment, attachment
from kvpolicy.huggingface.hybrid import HybridLayer
from kvpolicy.huggingface.layer import PolicyLayer
from kvpolicy.huggingface.model.fit import fitting_rotaries
from kvpolicy.huggingface.model.latents import check_latents, expanding_modules
from kvpolicy.huggingface.model.position_bias import bias_extent
from kvpolicy.huggingface.model.ranks import ranks_of
from kvpolicy.huggingface.model.rotary_positions import RotaryPositions
from kvpolicy.huggingface.model.shared_layers import readers_of, refuse_shards
from kvpolicy.huggingface.model.support import EVICTING, plain_layers, supported_config
from kvpolicy.huggingface.repetition.fit import repeating_modules
from kvpolicy.huggingface.session import Session
from kvpolicy.pipeline.capabilities import biases_rows
from kvpolicy.pipeline.pipeline import Pipeline
from kvpolicy.pipeline.title import Title


def opened(
    policy: Pipeline, model: PreTrainedModel, layer_class: type[PolicyLayer], **options: Any
) -> tuple[Session, Attachment, list[Any]]:
    """Return the session, the attachment and the empty layers of a cache; nothing is changed yet.

    Layers that evict are of `layer_class`. `options` are fields of the session. Raises
    UnsupportedModelError, with the reason, if the model cannot be served exactly.
    """
    config = supported_config(model)
    _check_biases(policy, options.get("storage"), options.get("storage_title"))
    layers, ranks = plain_layers(model, config), ranks_of(model, config)
    evicting = [at for at, layer in enumerate(layers) if type(layer) in EVICTING]
    readers = readers_of(type(model).__name__, config)
    refuse_shards(type(model).__name__, readers, ranks)
    expanding = expanding_modules(model, config, evicting)
    if expanding:
        check_latents(policy, model)
    extent = bias_extent(policy, model, config, ranks=ranks, prefill=options.get("prefill"))
    repeating = repeating_modules(
        policy, model, config, layers, readers=readers, ranks=ranks, expanding=expanding,
        is_static=layer_class.is_compileable,
    )  # fmt: skip
    rotaries = fitting_rotaries(policy, model, config, evicting, readers)
    watched = RotaryPositions.of(policy, rotaries)
    # The steps of a static cache are compiled, and count up by one.
    modules, compiled = watched.modules if watched else (), not layer_class.is_compileable
    attached = attachment(model, modules, expanding, repeating=repeating, compiled=compiled)
    session = Session(
        policy=policy,
        config=config,
        attention=attached.attention,
        rotaries=rotaries,
        readers=[readers.get(layer, [layer]) for layer in evicting],
        rotary_positions=watched,
        ranks=ranks,
        is_latent=bool(expanding),
        bias_extent=extent,
        modules=frozenset(map(id, model.modules())),
        **options,
    )
    order = iter(range(len(evicting)))
    return (
        session,
        attached,
        [
            _evicting(session, next(order), layer, layer_class)
            if type(layer) in EVICTING
            else layer
            for layer in layers
        ],
    )


def _check_biases(policy: Pipeline, storage: Any, title: Title | None) -> None:
    """Raise InvalidValueError for rows with a bias where a storage keeps the rows."""
    if storage is not None and biases_rows(policy.compactor):
        raise InvalidValueError(
            f"{policy.titles['compactor']} keeps rows with a bias of their logits, which {title} "
            "does not store. Use storage=None, or compactor='gather'."
        )


def _evicting(
    session: Session, index: int, plain: Any, layer_class: type[PolicyLayer]
) -> PolicyLayer:
    """Return the layer that evicts in place of one of transformers.

    Raises UnsupportedModelError for a linear state in a cache of fixed size, or of an old
    transformers.
    """
    if not isinstance(plain, LinearAttentionLayer):
        return layer_class(session, index)
    if layer_class is not PolicyLayer:
        raise UnsupportedModelError(
            "layers of this model have attention and a linear state in one, which a cache of fixed "
            "size does not hold. Use static=False."
        )
    number = getattr(plain, "number_of_states", None)
    if number is None:
        raise UnsupportedModelError(
            "layers of this model have attention and a linear state in one, and caches of "
            f"transformers {__version__} do not say how many states. Use a newer transformers."
        )
    return HybridLayer(session, index, number)
