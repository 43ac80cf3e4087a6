"""Records what a full cache and its attention do while a model reads what comes after a prompt."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from kvpolicy.errors import InvalidValueError, UnsupportedModelError
from kvpolicy.evaluation.recording.listening import blocks_heard, heard
from kvpolicy.huggingface.cache_argument import handed
from kvpolicy.observation.observation import Observation

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@attrs.frozen(kw_only=True, eq=False)
class Future:
    """Queries, keys and values of one layer's F tokens after a prompt, after rotary embedding."""

    queries: Float[Tensor, "B H F D"] = attrs.field(repr=False)
    keys: Float[Tensor, "B N F D"] = attrs.field(repr=False)
    values: Float[Tensor, "B N F Dv"] = attrs.field(repr=False)

    def heads(self, first: int, count: int, kv_heads: int) -> Future:
        """Keep `count` query heads from `first` on, and the `kv_heads` that they share."""
        start = first * kv_heads // count
        queries, shown = slice(first, first + count), slice(start, start + kv_heads)
        return Future(
            queries=self.queries[:, queries], keys=self.keys[:, shown], values=self.values[:, shown]
        )


@attrs.frozen(kw_only=True, eq=False)
class LayerRecord:
    """What one attention block did with the F tokens after the prompt.

    `inputs` are the hidden states that it was given, `outputs` what it put out, behind the output
    projection; `block` is its name in the model.
    """

    block: str
    future: Future
    inputs: Float[Tensor, "B F M"] = attrs.field(repr=False)
    outputs: Float[Tensor, "B F M"] = attrs.field(repr=False)


@attrs.frozen(kw_only=True, eq=False)
class Recording:
    """A prompt, what came after it, and what each layer with full attention did then."""

    prompt: Int[Tensor, "B T"] = attrs.field(repr=False)
    continuation: Int[Tensor, "B F"] = attrs.field(repr=False)
    layers: tuple[LayerRecord, ...]

    def future_of(self, observation: Observation) -> Future:
        """Return what the observed layer and heads will be asked.

        Raises InvalidValueError if the observation is not that of the recorded prompts at the end.
        """
        found = (observation.num_layers, observation.keys.shape[0], observation.seen)
        expected = (len(self.layers), *self.prompt.shape)
        if found != expected:
            raise InvalidValueError(
                "the future was recorded for {} layers, {} prompts and {} tokens, but the layer "
                "shown is one of {} layers, with {} prompts after {} tokens. Record these prompts, "
                "all equally long, and read them as recorded, in one forward.".format(
                    *expected, *found
                )
            )
        future = self.layers[observation.layer].future
        count, kv_heads = observation.queries.shape[1], observation.keys.shape[1]
        return future.heads(observation.first_head, count, kv_heads)


@torch.no_grad()
def record(
    model: PreTrainedModel, prompt: Int[Tensor, "B T"], continuation: Int[Tensor, "B F"]
) -> Recording:
    """Read a prompt, then one token after another, with transformers' own full cache.

    Prompts are equally long, without padding. The model is left as it was found. Raises
    InvalidValueError if there is no continuation, UnsupportedModelError if attention does not call
    transformers' attention interface.

    >>> from kvpolicy.testing import tiny_model
    >>> recorded = record(tiny_model(), torch.tensor([[1, 2, 3]]), torch.tensor([[4, 5]]))
    >>> recorded.layers[0].future.queries.shape, recorded.layers[0].outputs.shape
    (torch.Size([1, 4, 2, 8]), torch.Size([1, 2, 32]))
    """
    from transformers import DynamicCache

    check_tokens(prompt, continuation)
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    found: dict[int, nn.Module] = {}
    with heard(model, lambda block, _: found.update({_number(block): block})):
        model.base_model(input_ids=prompt, **handed(cache, to=model.base_model))
    numbers = full_layers(cache)
    blocks = _blocks(model, found, numbers)
    tape = _Tape(blocks)
    with heard(model, tape.take_queries), blocks_heard(blocks, tape.take_states):
        for token in continuation.split(1, dim=1):
            model.base_model(input_ids=token, **handed(cache, to=model.base_model))
    names = {block: name for name, block in model.named_modules()}
    start = prompt.shape[1]
    return Recording(
        prompt=prompt,
        continuation=continuation,
        layers=tuple(
            tape.record(place, names[block], cache.layers[number], start)
            for place, (block, number) in enumerate(zip(blocks, numbers, strict=True))
        ),
    )


class _Tape:
    """Collects the queries, inputs and outputs of attention blocks, token by token."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        self.places = {block: place for place, block in enumerate(blocks)}
        self.queries: list[list[Tensor]] = [[] for _ in blocks]
        self.inputs: list[list[Tensor]] = [[] for _ in blocks]
        self.outputs: list[list[Tensor]] = [[] for _ in blocks]

    def take_queries(self, block: nn.Module, queries: Tensor) -> None:
        if block in self.places:
            self.queries[self.places[block]].append(queries)

    def take_states(self, place: int, given: Tensor, out: Tensor) -> None:
        self.inputs[place].append(given)
        self.outputs[place].append(out)

    def record(self, place: int, name: str, layer: Any, start: int) -> LayerRecord:
        return LayerRecord(
            block=name,
            future=Future(
                queries=torch.cat(self.queries[place], dim=2),
                keys=layer.keys[:, :, start:],
                values=layer.values[:, :, start:],
            ),
            inputs=torch.cat(self.inputs[place], dim=1),
            outputs=torch.cat(self.outputs[place], dim=1),
        )


def full_layers(cache: Any) -> list[int]:
    """Return the numbers of the layers whose cache grows with the text: those that can evict."""
    from transformers.cache_utils import DynamicLayer

    return [number for number, layer in enumerate(cache.layers) if type(layer) is DynamicLayer]


def check_tokens(prompt: Tensor, continuation: Tensor) -> None:
    """Refuse ids that are no prompts with a continuation each."""
    shapes = prompt.shape, continuation.shape
    if any(len(shape) != 2 or 0 in shape for shape in shapes) or shapes[0][0] != shapes[1][0]:
        raise InvalidValueError(
            "give token ids of shape [B, T] for the prompts and [B, F] for what follows, at least "
            f"one token each, not {list(shapes[0])} and {list(shapes[1])}."
        )


def _number(block: nn.Module) -> int:
    return int(getattr(block, "layer_idx", -1))


def _blocks(
    model: PreTrainedModel, found: dict[int, nn.Module], numbers: Iterable[int]
) -> list[nn.Module]:
    try:
        return [found[number] for number in numbers]
    except KeyError as error:
        raise UnsupportedModelError(
            f"attention layer {error} of {type(model).__name__} does not call transformers' "
            "attention interface, so its queries cannot be recorded."
        ) from None
