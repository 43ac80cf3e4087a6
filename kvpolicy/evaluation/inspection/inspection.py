"""Reads one prompt with the full cache and with a policy's, and compares what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import attrs
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from kvpolicy.evaluation.caches import opened_cache
from kvpolicy.evaluation.inspection.attention import attention_on, held_of
from kvpolicy.evaluation.inspection.cause import Cause, mean_attention, shares, verdict
from kvpolicy.evaluation.inspection.keeping import KeepingSelector
from kvpolicy.evaluation.inspection.prompt import TokenizedPrompt
from kvpolicy.evaluation.runs.reading import ends_of
from kvpolicy.huggingface.cache_argument import handed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from kvpolicy.policy import Policy


@attrs.frozen(kw_only=True, eq=False)
class Inspection:
    """What a policy keeps of a prompt, and what the model then writes.

    `held` says for each layer which tokens of the prompt each key/value head holds when the answer
    begins. `right` and `full_right` are None without an expected answer. `cause` is for a wrong
    answer.
    """

    prompt: TokenizedPrompt
    held: tuple[Bool[Tensor, "N T"], ...]
    text: str
    full_text: str
    answer: str | None = None
    needed: tuple[range, ...] = ()
    right: bool | None = None
    full_right: bool | None = None
    cause: Cause | None = None

    @property
    def shares(self) -> Float[Tensor, " T"]:
        """The share of layers and key/value heads that hold each token."""
        return torch.cat(self.held).float().mean(0)


@attrs.frozen(kw_only=True, eq=False)
class _Written:
    """An answer: its tokens, and for each token that was read the attention on needed places."""

    tokens: list[int]
    attention: list[list[Float[Tensor, " N"] | None]]
    held: tuple[Bool[Tensor, "N T"], ...]


@torch.inference_mode()
def inspect(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: TokenizedPrompt,
    policy: Policy,
    *,
    answer: str | None = None,
    needed: str | None = None,
    max_new_tokens: int = 32,
) -> Inspection:
    """Answer a prompt with and without a policy, and say why a wrong answer is wrong.

    A text is right if it contains `answer`, whatever the case of letters. `needed` is what of the
    prompt the answer depends on; the default is the answer itself.
    """
    wanted = needed or answer
    places = tuple(prompt.places_of(wanted)) if wanted else ()
    read = _Reader(model, prompt, places, max_new_tokens, ends_of(model, tokenizer))
    full, found = read.written(None), read.written(policy)
    texts = [str(tokenizer.decode(each.tokens, skip_special_tokens=True)) for each in (full, found)]
    rights = [None if answer is None else answer.lower() in text.lower() for text in texts]
    cause = None
    if rights[1] is False:
        cause = _cause(full, found, places, full_right=bool(rights[0]))
        if cause.verdict in ("missing", "broken", "outweighed") and policy.every is None:
            again = read.written(read.keeping(policy))
            text = str(tokenizer.decode(again.tokens, skip_special_tokens=True))
            cause = attrs.evolve(cause, right_if_kept=str(answer).lower() in text.lower())
    return Inspection(
        prompt=prompt,
        held=found.held,
        text=texts[1],
        full_text=texts[0],
        answer=answer,
        needed=places,
        right=rights[1],
        full_right=rights[0],
        cause=cause,
    )


def _cause(full: _Written, found: _Written, places: Sequence[range], *, full_right: bool) -> Cause:
    if not full_right:
        return Cause(verdict="full")
    if not places:
        return Cause(verdict="unknown")
    pairs = enumerate(zip(full.tokens, found.tokens, strict=False))
    same = min(len(full.tokens), len(found.tokens))
    # Token i is predicted by the attention of token i - 1. The first is the full cache's.
    wrong = next((place for place, (a, b) in pairs if a != b), same) - 1
    weights = _summed(full.attention)
    missing, broken, whole = shares(found.held, places, weights)
    looked = [
        mean_attention(each.attention[wrong]) if 0 <= wrong < len(each.attention) else None
        for each in (found, full)
    ]
    return Cause(
        verdict=verdict(missing, broken, whole),
        missing=missing,
        broken=broken,
        whole=whole,
        attention=looked[0],
        full_attention=looked[1],
    )


def _summed(steps: Sequence[Sequence[Tensor | None]]) -> list[Tensor | None]:
    """Return the attention of each layer and head over all tokens of an answer."""
    return [
        None if any(layer is None for layer in layers) else torch.stack(layers).sum(0)
        for layers in map(list[Any], zip(*steps, strict=True))
    ]


@attrs.frozen
class _Reader:
    """A model that answers one prompt, with whatever policy."""

    model: PreTrainedModel
    prompt: TokenizedPrompt
    places: Sequence[range]
    limit: int
    ends: frozenset[int]

    def written(self, policy: Policy | None) -> _Written:
        """Answer by greedy decoding."""
        ids = self.prompt.ids.to(self.model.device)
        needed = {position for place in self.places for position in place}
        with opened_cache(self.model, policy) as cache:
            output: Any = self.model(
                input_ids=ids, **handed(cache, to=self.model), logits_to_keep=1
            )
            held = tuple(_mask(each, ids.shape[1]) for each in held_of(cache, ids.shape[1]))
            tokens, attention = [int(output.logits[0, -1].argmax())], []
            while tokens[-1] not in self.ends and len(tokens) < self.limit:
                logits, looked = attention_on(self.model, cache, tokens[-1], needed)
                attention.append(looked)
                tokens.append(int(logits.argmax()))
        return _Written(tokens=tokens, attention=attention, held=held)

    def keeping(self, policy: Policy) -> Policy:
        """Return the policy, but keeping the needed places first."""
        needed = sorted({position for place in self.places for position in place})
        selector = KeepingSelector(
            selector=policy.selector, places=tuple(needed), length=self.prompt.ids.shape[1]
        )
        return attrs.evolve(policy, selector=selector)


def _mask(held: Tensor, tokens: int) -> Bool[Tensor, "N T"]:
    """Return which tokens of the prompt each head holds."""
    found = torch.zeros((held.shape[0], tokens + 1), dtype=torch.bool)
    return found.scatter_(1, held.where(held >= 0, tokens), True)[:, :tokens]
