"""Prompts of one length that are read and answered together: one cache for all of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from kvpolicy.evaluation.caches import opened_cache, shares_held
from kvpolicy.evaluation.recording.read_once import ReadOnce, next_logits
from kvpolicy.evaluation.runs.answer import check_length
from kvpolicy.evaluation.runs.asks import Asked, written_fields
from kvpolicy.evaluation.runs.entrant import suited
from kvpolicy.evaluation.runs.prompt import Prompt
from kvpolicy.evaluation.runs.reading import ends_of, entries_of_forward
from kvpolicy.huggingface.report import report_of
from kvpolicy.task import Metric, Sample

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedTokenizerBase

    from kvpolicy.policy import Policy


def answered_together(
    reader: ReadOnce,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[tuple[Prompt, Sample]],
    metric: Metric,
    policy: Policy | None,
) -> list[dict[str, Any]]:
    """Return for each question what `answered` does, but for times: texts by greedy decoding.

    Contexts have one length, and so have the questions behind them. The bytes are an equal share of
    the cache's. Raises what `answered` does, for all of them.
    """
    for prompt, sample in questions:
        check_length(reader.model, prompt, sample)
    prompts = [prompt for prompt, _ in questions]
    samples = [sample for _, sample in questions]
    with torch.inference_mode(), opened_cache(reader.model, suited(policy, metric)) as cache:
        writing = _Writing(reader, cache, prompts)
        texts = writing.texts(samples, ends_of(reader.model, tokenizer))
        nbytes = report_of(cache).nbytes // len(prompts)
        device = reader.model.device.type
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
    return [
        {
            "tokens": prompt.tokens,
            **written_fields(Asked(tokenizer, prompt, sample, metric), tokens),
            "positions": positions,
            "nbytes": nbytes,
            "peak_nbytes": peak,
            "footprint": footprint,
            "full_footprint": full,
            "together": len(prompts),
        }
        for prompt, sample, tokens, positions, (footprint, full) in zip(
            prompts, samples, texts, writing.positions, writing.footprints, strict=True
        )
    ]


class _Writing:
    """Several texts that are written with one cache; each counts its tokens up to its own end."""

    def __init__(self, reader: ReadOnce, cache: Cache, prompts: Sequence[Prompt]) -> None:
        self.reader, self.cache, self.prompts = reader, cache, prompts
        self.footprints = [(0, 0)] * len(prompts)
        self.positions: list[float] = []

    def texts(self, samples: Sequence[Sample], ends: frozenset[int]) -> list[list[int]]:
        """Read the prompts, and write the answers by greedy decoding, as `Reading.write` does."""
        logits = self._ask()
        ids = torch.cat([torch.cat([each.context, each.question], 1) for each in self.prompts])
        self.positions = shares_held(self.cache, ids).sum(1).tolist()
        limits = [each.max_new_tokens or 1 for each in samples]
        least = [each.min_new_tokens for each in samples]
        written: list[list[int]] = [[] for _ in samples]
        open_rows = list(range(len(samples)))
        while True:
            tokens = _likeliest(
                logits,
                [
                    () if len(text) >= few else ends
                    for text, few in zip(written, least, strict=True)
                ],
            )
            open_rows = [row for row in open_rows if tokens[row] not in ends]
            for row in open_rows:
                written[row].append(tokens[row])
            open_rows = [row for row in open_rows if len(written[row]) < limits[row]]
            if not open_rows:
                return written
            logits = self._read(torch.tensor(tokens)[:, None], open_rows)

    def _ask(self) -> Float[Tensor, "B V"]:
        everyone = range(len(self.prompts))
        context = torch.cat([each.context for each in self.prompts])
        self._count(context.shape[1], everyone)
        logits = self.reader.read(self.cache, context)
        questions = torch.cat([each.question for each in self.prompts])
        for token in questions.split(1, dim=1):
            logits = self._read(token, everyone) if token.shape[1] else logits
        return logits

    def _read(self, ids: Tensor, rows: Sequence[int]) -> Float[Tensor, "B V"]:
        self._count(ids.shape[1], rows)
        return next_logits(self.reader.model, self.cache, ids)

    def _count(self, new: int, rows: Sequence[int]) -> None:
        layers = list(zip(self._held(), report_of(self.cache).layers, strict=True))
        for row in rows:
            before = [(held[row], layer.seen) for held, layer in layers]
            entries, full = entries_of_forward(before, new)
            self.footprints[row] = self.footprints[row][0] + entries, self.footprints[row][1] + full

    def _held(self) -> list[list[int]]:
        """Return by layer and row how many positions a head holds on average."""
        from kvpolicy.huggingface.cache import PolicyCache

        count = len(self.prompts)
        if not isinstance(self.cache, PolicyCache) or not self.cache.seen:
            return [[layer.held] * count for layer in report_of(self.cache).layers]
        return [
            [round(held / each.shape[1]) for held in (each >= 0).sum((1, 2)).tolist()]
            for each in self.cache.positions
        ]


def _likeliest(logits: Float[Tensor, "B V"], but: Sequence[Collection[int]]) -> list[int]:
    """Return the token with the largest logit of each row, except for some."""
    if any(but):
        logits = logits.clone()
        for row, excluded in zip(logits, but, strict=True):
            row[list(excluded)] = -torch.inf
    found: list[int] = logits.argmax(-1).tolist()
    return found
