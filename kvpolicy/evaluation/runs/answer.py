"""One run: an answer to a prompt with a policy's cache, its score, and what the cache held."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
import torch

from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation.caches import opened_cache
from kvpolicy.evaluation.runs.prompt import Prompt
from kvpolicy.evaluation.runs.reading import Reading, ends_of, held_back
from kvpolicy.huggingface.cache import PolicyCache
from kvpolicy.huggingface.model.config import decoder_config
from kvpolicy.task import Metric, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from kvpolicy.policy import Policy


@torch.inference_mode()
def answered(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    sample: Sample,
    metric: Metric,
    policy: Policy | None,
) -> dict[str, Any]:
    """Return the fields of a row that a run decides; None as policy is the full cache.

    Raises InvalidValueError for a prompt that is too long for the model, and for a sample that
    lacks what the metric needs; and whatever the policy or the metric raises.
    """
    _check_length(model, prompt, sample)
    ask = _ASKS[metric.asks]
    if metric.asks in ("choice", "likelihood", "agreement"):
        prompt = held_back(prompt)
    if metric.asks == "stream" and metric.chunk == 1 and policy is not None:
        policy = attrs.evolve(policy, every=1)
    on_gpu = model.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(model.device)
    with opened_cache(model, policy) as cache:
        reading = Reading(model, cache)
        found = ask(reading, tokenizer, prompt, sample, metric)
        return {
            "policy": None if policy is None else policy.to_dict(),
            "tokens": prompt.tokens,
            **found,
            "positions": reading.positions,
            "nbytes": reading.report().nbytes,
            "peak_nbytes": torch.cuda.max_memory_allocated(model.device) if on_gpu else None,
            "footprint": reading.footprint,
            "full_footprint": reading.full_footprint,
            "first_seconds": reading.first,
            "token_seconds": sum(reading.steps) / len(reading.steps) if reading.steps else None,
        }


def _written(
    reading: Reading,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    sample: Sample,
    metric: Metric,
) -> Mapping[str, Any]:
    tokens = reading.write(
        prompt,
        limit=sample.max_new_tokens or 1,
        ends=ends_of(reading.model, tokenizer),
        least=sample.min_new_tokens,
    )
    text = str(tokenizer.decode(tokens, skip_special_tokens=True))
    for stop in sample.stop:
        text = text.partition(stop)[0]
    return {
        "text": text,
        "score": _judged(metric, text, sample),
        "new_tokens": len(tokens),
    }


def _chosen(
    reading: Reading,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    sample: Sample,
    metric: Metric,
) -> Mapping[str, Any]:
    if len(sample.choices) < 2:
        raise InvalidValueError(
            f"sample {sample.name!r} has {len(sample.choices)} choices, and metric "
            f"{metric.name!r} needs two or more."
        )
    logits = reading.ask(prompt)
    reading.see(prompt)
    cache, losses = reading.cache, []
    for choice in sample.choices:
        reading.cache = cache.clone() if isinstance(cache, PolicyCache) else copy.deepcopy(cache)
        losses.append(reading.loss(logits, _tokens(tokenizer, choice, sample)))
    reading.cache = cache
    text = sample.choices[losses.index(min(losses))]
    return {"text": text, "score": _judged(metric, text, sample)}


def _likelihood(
    reading: Reading,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    sample: Sample,
    metric: Metric,
) -> Mapping[str, Any]:
    if not sample.answers:
        raise InvalidValueError(f"sample {sample.name!r} has no answer, so it has no likelihood.")
    tokens = _tokens(tokenizer, sample.answers[0], sample)
    logits = reading.ask(prompt)
    reading.see(prompt)
    loss = reading.loss(logits, tokens)
    count = len(tokens)
    return {"score": loss / count, "weight": count, "new_tokens": count}


def _streamed(
    reading: Reading,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    sample: Sample,
    metric: Metric,
) -> Mapping[str, Any]:
    if prompt.tokens < 2:
        raise InvalidValueError(
            f"sample {sample.name!r} has {prompt.tokens} token. Perplexity needs two or more."
        )
    loss = reading.stream(torch.tensor([prompt.ids]), metric.chunk)
    reading.see(prompt)
    count = prompt.tokens - 1
    return {"score": loss / count, "weight": count}


def _agreed(
    reading: Reading,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    sample: Sample,
    metric: Metric,
) -> Mapping[str, Any]:
    """Follow what the full cache writes; the score is the share before the first other token."""
    limit, ends = sample.max_new_tokens or 1, ends_of(reading.model, tokenizer)
    with opened_cache(reading.model, None) as cache:
        tokens, expected = Reading(reading.model, cache).follow(
            prompt, None, limit=limit, ends=ends
        )
    _, found = reading.follow(prompt, tokens, limit=limit, ends=ends)
    same = (found.argmax(-1) == expected.argmax(-1)).tolist()
    divergence = (expected.exp() * (expected - found)).nansum(-1).mean()
    return {
        "text": str(tokenizer.decode(found.argmax(-1).tolist(), skip_special_tokens=True)),
        "score": [*same, False].index(False) / len(same),
        "divergence": float(divergence),
        "new_tokens": len(tokens),
    }


_ASKS = {
    "text": _written,
    "choice": _chosen,
    "likelihood": _likelihood,
    "stream": _streamed,
    "agreement": _agreed,
}


def _judged(metric: Metric, text: str, sample: Sample) -> float:
    if metric.judge is None:
        raise InvalidValueError(f"metric {metric.name!r} has no judge, so it cannot score a text.")
    return float(metric.judge(text, sample))


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str, sample: Sample) -> list[int]:
    tokens: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not tokens:
        raise InvalidValueError(f"an answer or choice of sample {sample.name!r} is empty.")
    return tokens


def _check_length(model: PreTrainedModel, prompt: Prompt, sample: Sample) -> None:
    longest = getattr(decoder_config(model), "max_position_embeddings", None)
    if longest is not None and prompt.tokens > longest:
        raise InvalidValueError(
            f"the prompt of sample {sample.name!r} has {prompt.tokens:,} tokens, but the model "
            f"reads at most {longest:,}. Cut prompts in the middle with --max-prompt-tokens "
            "(max_prompt_tokens=...), or choose a model for longer texts."
        )
