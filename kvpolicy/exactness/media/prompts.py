"""Prompts with an image or sound in them: tensors that a model takes, found by trying.

Processors know the layout of these tensors, but need files of a real model. Here the arguments of
`forward` say which layouts are possible. The first that the model can encode is used.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import attrs
import torch
from torch import Tensor
from transformers import PreTrainedModel

from kvpolicy.exactness.usages.inputs import tokens

SIDES = (4, 8)
"""Patches along the sides of an image, for models that take images of any size."""
FRAMES = (64, 32, 100, 3000)
"""Frames of sound; some encoders want a fixed number."""


_known: weakref.WeakKeyDictionary[PreTrainedModel, Media] = weakref.WeakKeyDictionary()


@attrs.frozen(kw_only=True, eq=False)
class Media:
    """One image or sound as a model takes it, and the ids that stand for it in a prompt."""

    ids: list[int]
    tensors: Mapping[str, Tensor]
    kind: int
    """What `mm_token_type_ids` say of the ids: 1 for images, 3 for sound."""
    token: int

    def prompt(self, seed: int, before: int, behind: int) -> dict[str, Tensor]:
        """Return the arguments of a prompt: text, the media, and text again."""
        media = torch.tensor([self.ids])
        ids = torch.cat([tokens(seed, before), media, tokens(seed + 1, behind)], 1)
        return {"input_ids": ids, **self.tensors}

    def types(self, ids: Tensor) -> Tensor:
        """Return the kind of each token: 0 is text."""
        return (ids == self.token).long() * self.kind


def media_of(model: PreTrainedModel) -> Media:
    """Return an image that a model takes, or a sound if it takes no image.

    Raises ValueError, with the first reason, if none of the known layouts fits.
    """
    if (known := _known.get(model)) is not None:
        return known
    reason = None
    for kind, tensors in candidates(model):
        try:
            media = _encoded(model, kind, tensors)
            _check_that_it_is_read(model, media)
        except Exception as error:  # noqa: BLE001 - another layout is tried
            first = str(error).strip().splitlines() or [""]
            reason = reason or f"{type(error).__name__}: {first[0]}"
        else:
            _known[model] = media
            return media
    reason = reason or "it takes no tensors of a known name"
    raise ValueError(f"no prompt with media could be made for it: {reason}")


def candidates(model: PreTrainedModel) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Give the layouts that the arguments of `forward` allow."""
    takes = set(inspect.signature(model.forward).parameters)
    if "pixel_values" in takes:
        for tensors in _images(model, takes):
            yield "image", tensors
    if "input_features" in takes:
        for tensors in _sounds(model, takes):
            yield "audio", tensors


def _images(model: PreTrainedModel, takes: set[str]) -> Iterator[dict[str, Tensor]]:
    vision = _part(model.config, "vision_config")
    patch, channels = _size(vision, "patch_size", 14), _size(vision, "num_channels", 3)
    if "image_grid_thw" in takes:
        yield from _patches(vision, patch, channels, takes)
    side = _size(vision, "image_size", 4 * patch)
    for size in dict.fromkeys((side, 4 * patch, 8 * patch, 16 * patch)):
        for shape in ((1, channels, size, size), (1, 1, channels, size, size)):
            yield from _whole_images(shape, takes, patch)
        for tiles in (2, 3, 5):
            yield from _whole_images((1, tiles, channels, size, size), takes, patch)
    length = channels * patch * patch
    if "image_position_ids" in takes:
        for width in (length, length * 9):
            grid = torch.cartesian_prod(torch.arange(6), torch.arange(6))[None]
            pixels = _random(1, 36, width)
            yield {"pixel_values": pixels, "image_position_ids": grid}
    if "spatial_shapes" in takes:
        pixels, shapes = _random(1, 16, length), torch.tensor([[4, 4]])
        seen = torch.ones(1, 16, dtype=torch.long)
        yield {"pixel_values": pixels, "spatial_shapes": shapes, "pixel_attention_mask": seen}
    if "target_sizes" in takes:
        pixels, sizes = _random(1, channels, patch, 16 * patch), torch.tensor([[4, 4]])
        yield {"pixel_values": pixels, "target_sizes": sizes}
    if frames := _size(vision, "temporal_patch_size", 0):
        # Each patch is a film of a few frames, and channels come last.
        yield {"pixel_values": _random(SIDES[1], frames, patch, patch, channels)}


def _whole_images(
    shape: tuple[int, ...], takes: set[str], patch: int
) -> Iterator[dict[str, Tensor]]:
    tensors = {"pixel_values": _random(*shape)}
    size, count = shape[-1], 1
    if "image_sizes" in takes:
        tensors["image_sizes"] = torch.tensor([[size, size]] * count)
    yield tensors
    if "high_res_pixel_values" in takes:
        for large in (size, 2 * size, 1024):
            high = _random(*shape[:-2], large, large)
            yield tensors | {"high_res_pixel_values": high}
    if "image_sizes" in takes:
        yield {"pixel_values": tensors["pixel_values"]}
    if "num_local_patches" in takes:
        yield tensors | {"num_local_patches": torch.tensor([0])}


def _patches(
    vision: Any, patch: int, channels: int, takes: set[str]
) -> Iterator[dict[str, Tensor]]:
    frames = _size(vision, "temporal_patch_size", 1)
    grid = torch.tensor([[1, *SIDES]])
    count = SIDES[0] * SIDES[1]
    more = {"image_merge_sizes": torch.tensor([2])} if "image_merge_sizes" in takes else {}
    for shape in (
        (count, channels * frames * patch * patch),
        (count, channels * 2 * patch * patch),
        (count, channels * patch * patch),
        (count, channels, patch, patch),
        (1, count, channels, patch, patch),
    ):
        yield {"pixel_values": _random(*shape), "image_grid_thw": grid} | more


def _sounds(model: PreTrainedModel, takes: set[str]) -> Iterator[dict[str, Tensor]]:
    audio = _part(model.config, "audio_config")
    bins = [_size(audio, name, 0) for name in ("num_mel_bins", "input_feat_size", "input_dim")]
    lengths = [2 * _size(audio, "max_source_positions", 0), *FRAMES]
    for mel in [each for each in bins if each] or [128, 80]:
        for frames in filter(None, dict.fromkeys(lengths)):
            for shape in ((1, mel, frames), (1, frames, mel)):
                features = {"input_features": _random(*shape)}
                masks = [
                    name
                    for name in ("input_features_mask", "feature_attention_mask")
                    if name in takes
                ]
                seen = torch.ones(1, frames, dtype=torch.long)
                yield features | dict.fromkeys(masks, seen)
                yield features | dict.fromkeys(masks, seen.bool())


@torch.no_grad()
def _encoded(model: PreTrainedModel, kind: str, tensors: dict[str, Tensor]) -> Media:
    """Let the model encode the tensors, and give each row that comes out an id in the prompt."""
    encode = _method(model, f"get_{kind}_features")
    known = inspect.signature(encode).parameters
    open_ended = any(each.kind is each.VAR_KEYWORD for each in known.values())
    given = {name: each for name, each in tensors.items() if name in known or open_ended}
    rows = sum(each[..., 0].numel() for each in _features(encode(**given)))
    config = model.config
    token = _id(config, f"{kind}_token_id", f"{kind}_token_index")
    if token is None:
        raise ValueError(f"its configuration has no {kind}_token_id")
    edges = ("vision", "image", "boi") if kind == "image" else ("audio", "boa")
    start, end = (_id(config, *(f"{edge}_{which}_token_id" for edge in edges)) for which in _ENDS)
    ids = [*([] if start is None else [start]), *[token] * rows, *([] if end is None else [end])]
    return Media(ids=ids, tensors=tensors, kind=1 if kind == "image" else 3, token=token)


_ENDS = ("start", "end")


def _features(found: Any) -> list[Tensor]:
    found = getattr(found, "pooler_output", None) if hasattr(found, "pooler_output") else found
    if isinstance(found, Tensor):
        return [found]
    if found is None:
        raise ValueError("its encoder returns no features")
    return list(chain.from_iterable(_features(each) for each in found if each is not None))


@torch.no_grad()
def _check_that_it_is_read(model: PreTrainedModel, media: Media) -> None:
    """Raise ValueError unless another image changes the logits."""
    prompt = arguments(model, media.prompt(0, 4, 4), media)
    logits = model(**prompt, use_cache=False).logits
    name = next(iter(media.tensors))
    other = model(**prompt | {name: -prompt[name]}, use_cache=False).logits
    if not bool(logits.isfinite().all()):
        raise ValueError("its logits are not finite")
    if torch.equal(logits, other):
        raise ValueError("its logits do not depend on the media")


def arguments(model: PreTrainedModel, prompt: dict[str, Tensor], media: Media) -> dict[str, Tensor]:
    """Return a prompt with the kinds of its tokens, where the model takes them."""
    takes = inspect.signature(model.forward).parameters
    found = dict(prompt)
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in takes:
            found[name] = media.types(prompt["input_ids"])
    return found


def _method(model: PreTrainedModel, name: str) -> Any:
    for each in (model, getattr(model, "model", None)):
        if hasattr(each, name):
            return getattr(each, name)
    raise ValueError(f"it has no {name}")


def _part(config: Any, name: str) -> Any:
    inner = getattr(config, "thinker_config", config)
    return getattr(inner, name, None) or inner


def _size(part: Any, name: str, otherwise: int) -> int:
    found = getattr(part, name, None)
    found = found[0] if isinstance(found, list | tuple) and found else found
    return found if isinstance(found, int) else otherwise


def _id(config: Any, *names: str) -> int | None:
    found = (getattr(config, name, None) for name in names)
    return next((each for each in found if isinstance(each, int)), None)


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
