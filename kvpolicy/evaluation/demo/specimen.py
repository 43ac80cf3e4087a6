"""Which tokens of one prompt survive under each policy, beside what the model answered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import attrs
import torch

from kvpolicy.evaluation.caches import opened_cache, shares_held
from kvpolicy.evaluation.needle.places import token_places
from kvpolicy.evaluation.reports.comparison import FULL_NAME
from kvpolicy.evaluation.runs.entrant import FULL, Entrant
from kvpolicy.evaluation.runs.row import Row
from kvpolicy.huggingface.cache_argument import handed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from kvpolicy.evaluation.needle import NeedlePrompt


@attrs.frozen(kw_only=True)
class Survival:
    """What one policy kept of a prompt, and what the model then answered.

    `shares` gives, for every token of the prompt, the share of layers and key/value heads that
    hold it when the answer begins.
    """

    name: str
    shares: tuple[float, ...]
    answer: str
    right: bool


@attrs.frozen(kw_only=True)
class Specimen:
    """One prompt, word by word, under the full cache and under every recipe at one budget.

    `facts` are the places of all sentences that could have been asked for, `asked` is the place of
    the answer among them.
    """

    words: tuple[str, ...]
    facts: tuple[range, ...]
    asked: range
    budget: int
    survivals: tuple[Survival, ...]


@torch.inference_mode()
def read_specimen(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: NeedlePrompt,
    entrants: Iterable[Entrant],
    rows: Sequence[Row],
    budget: int,
) -> Specimen:
    """Read one prompt with the full cache, and with every recipe that has a row at the budget.

    `rows` are those of this prompt, with the answers.
    """
    tokens: list[int] = tokenizer(prompt.text)["input_ids"]
    answers = {row.entrant: row for row in rows if row.budget in (None, budget) and not row.failed}
    return Specimen(
        words=tuple(str(tokenizer.decode(token)) for token in tokens),
        facts=tuple(token_places(tokenizer, prompt.text, fact) for fact in prompt.facts),
        asked=token_places(tokenizer, prompt.text, prompt.answer_positions),
        budget=budget,
        survivals=tuple(
            _survival(model, tokens, entrant, answers)
            for entrant in entrants
            if entrant.budget in (None, budget) and entrant.name in answers
        ),
    )


def _survival(
    model: PreTrainedModel, tokens: Sequence[int], entrant: Entrant, answers: Mapping[str, Row]
) -> Survival:
    ids = torch.tensor([tokens], device=model.device)
    with opened_cache(model, entrant.policy) as cache:
        model(input_ids=ids, **handed(cache, to=model), logits_to_keep=1)
        (shares,) = shares_held(cache, ids)
    row = answers[entrant.name]
    return Survival(
        name=FULL_NAME if entrant.name == FULL else entrant.name,
        shares=tuple(shares.tolist()),
        answer=(row.text or "").strip(),
        right=row.score == 1,
    )
