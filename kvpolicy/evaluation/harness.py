"""lm-evaluation-harness with an evicted cache: importing this gives lm_eval the model `kvpolicy`.

    kvpolicy lm-eval --model kvpolicy --model_args pretrained=M,recipe=restkv,budget=1024 --tasks T

lm_eval finds models in its own table only, so that its own command does not know this one. See
docs/evaluation.md.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from kvpolicy.budget import Budget, positions_of, read_budget, written
from kvpolicy.errors import (
    InvalidOptionError,
    InvalidValueError,
    MissingPackageError,
    shown,
    suggest,
)
from kvpolicy.evaluation.continuations import logits_of_continuations, logits_of_stream
from kvpolicy.evaluation.runs.entrant import Recipe, entrants
from kvpolicy.huggingface.cache_argument import handed

try:
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ImportError as error:
    raise MissingPackageError(
        f"lm-evaluation-harness cannot be imported: {error}. Install kvpolicy[eval]."
    ) from error

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from kvpolicy.policy import Policy

OPTIONS = ("recipe", "budget", "chunk")
"""What `PolicyLM` takes beside the options of HFLM."""

Request: TypeAlias = tuple[tuple[str, str] | None, list[int], list[int]]
"""The texts, and the tokens of context and continuation; windows of rolling texts have no texts."""

Answer: TypeAlias = tuple[float, bool]
"""The log-likelihood of a continuation, and whether greedy decoding would write it."""


@register_model("kvpolicy")
class PolicyLM(HFLM):  # type: ignore[misc]
    """lm_eval's model HFLM, whose cache a recipe keeps within a budget.

    - `recipe`: a name (see `kvpolicy list recipe`), a JSON file of a policy, or a policy. Without
      it this is HFLM.
    - `budget`: positions (1024), a share of the prompt (0.25 or 25%), or an error (within:2%).
    - `chunk`: how many tokens of a rolling text are read at a time, with an eviction after each.

    All other options are HFLM's. The batch size must be 1: each request has a cache of its own.

    - A text is generated from the evicted prompt. Its first token is that of the full cache.
    - A likelihood is that over an evicted context. Requests with the same context share it.
    - A rolling likelihood reads each window of HFLM from its first token, `chunk` tokens at a time.

    Where the cache still holds every token in the end, HFLM answers a likelihood itself: the figure
    is the same to the last bit. Raises InvalidValueError, InvalidOptionError,
    UnknownComponentError or UnsupportedModelError for arguments that make no sense.
    """

    def __init__(
        self,
        pretrained: str | PreTrainedModel,
        *,
        recipe: Recipe | None = None,
        budget: Budget | str | None = None,
        chunk: int = 1,
        batch_size: int | str = 1,
        **options: Any,
    ) -> None:
        _check_names(options)
        self.policy = _policy(recipe, budget)
        self.chunk = _checked_chunk(chunk)
        if self.policy is not None and str(batch_size) != "1":
            raise InvalidValueError(
                f"batch_size must be 1 with a recipe, but is {shown(batch_size)}. Each request is "
                "evicted in a cache of its own."
            )
        options.setdefault("device", "cuda" if torch.cuda.is_available() else "cpu")
        super().__init__(pretrained, batch_size=batch_size, **options)
        if self.policy is not None:
            self.policy.cache(self.model).close()  # it says now if it cannot serve the model

    def get_model_info(self) -> dict[str, Any]:
        """Return what lm_eval writes beside the results; the policy is part of it."""
        info: dict[str, Any] = super().get_model_info()
        policy = None if self.policy is None else self.policy.to_dict()
        return info | {"kvpolicy": {"policy": policy, "chunk": self.chunk}}

    def _model_generate(self, *args: Any, **options: Any) -> Tensor:
        """Generate with a fresh cache for each request."""
        with nullcontext() if self.policy is None else self.policy.cache(self.model) as cache:
            own = {} if cache is None else handed(cache, to=self.model.generate)
            written: Tensor = super()._model_generate(*args, **own, **options)
            return written

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, **options: Any
    ) -> list[Answer]:
        """Answer the requests; HFLM passes windows of rolling texts here too."""
        if self.policy is None:
            plain: list[Answer] = super()._loglikelihood_tokens(
                requests, disable_tqdm=disable_tqdm, **options
            )
            return plain
        requests = [self._cut(each) for each in requests]
        for request in requests:
            _check_context(request, self.policy)
        found: dict[int, Answer] = {}
        hidden = disable_tqdm or self.rank != 0
        with tqdm(total=len(requests), disable=hidden, desc="Reading evicted contexts") as bar:
            for places in _with_one_context(requests):
                answers = self._answers([requests[place] for place in places], self.policy)
                found |= zip(places, answers, strict=True)
                bar.update(len(places))
        return [found[place] for place in range(len(requests))]

    def _cut(self, request: Request) -> Request:
        """Leave out the front of a context that is too long, as HFLM does."""
        texts, context, continuation = request
        room = self.max_length + 1 - len(continuation)
        return (texts, context[-room:], continuation) if room > 0 else request

    def _answers(self, requests: Sequence[Request], policy: Policy) -> list[Answer]:
        """Answer requests with one context."""
        with self._computing():
            logits = self._logits(requests, policy)
        if logits is None:
            plain: list[Answer] = super()._loglikelihood_tokens(requests, disable_tqdm=True)
            return plain
        answers = []
        for (texts, _, tokens), before in zip(requests, logits, strict=True):
            answers.append(self._answer(before, tokens))
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answers[-1])
        return answers

    def _logits(
        self, requests: Sequence[Request], policy: Policy
    ) -> list[Float[Tensor, "F V"]] | None:
        """Return the logits before each token of the continuations; None if nothing is evicted."""
        texts, context, tokens = requests[0]
        if texts is not None:
            continuations = [each for _, _, each in requests]
            return logits_of_continuations(self.model, policy, context, continuations)
        streamed = logits_of_stream(self.model, policy, context + tokens, chunk=self.chunk)
        return None if streamed is None else [streamed[-len(tokens) :]]

    def _answer(self, logits: Float[Tensor, "F V"], tokens: Sequence[int]) -> Answer:
        ids = torch.tensor(tokens, device=logits.device)
        chances = logits.log_softmax(-1, dtype=self.softmax_dtype).gather(1, ids[:, None])
        return float(chances.sum()), bool((logits.argmax(-1) == ids).all())

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Compute as HFLM does: without gradients, in the precision that was asked for."""
        dtype = self.mixed_precision_dtype
        mixed = torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)
        with torch.no_grad(), mixed:
            yield


def _policy(recipe: Recipe | None, budget: Budget | str | None) -> Policy | None:
    if recipe is None:
        if budget is not None:
            raise InvalidValueError(
                f"budget is {shown(budget)}, but there is no recipe. Give one, such as "
                "recipe=restkv; `kvpolicy list recipe` prints the names."
            )
        return None
    known = read_budget(budget) if isinstance(budget, str) else budget
    _, entrant = entrants([recipe], [] if known is None else [known])
    if entrant.refusal is not None:
        raise InvalidValueError(entrant.refusal)
    return entrant.policy


def _checked_chunk(chunk: int) -> int:
    if not isinstance(chunk, int) or isinstance(chunk, bool) or chunk < 1:
        raise InvalidValueError(f"chunk must be 1 token or more, but is {shown(chunk)}.")
    return chunk


def _check_names(options: Mapping[str, Any]) -> None:
    """Refuse what is nearly an option of ours: HFLM would give it to the model."""
    theirs = inspect.signature(HFLM.__init__).parameters
    for name in options:
        near = suggest(name, OPTIONS)
        if name not in theirs and near:
            raise InvalidOptionError(
                f"the model kvpolicy has no option {shown(name)}.{near} It has "
                f"{', '.join(OPTIONS)}, and those of lm_eval's model hf."
            )


def _check_context(request: Request, policy: Policy) -> None:
    """Refuse a likelihood on which the policy would have no effect, though it has a budget."""
    texts, context, tokens = request
    total = len(context) + len(tokens)
    if texts is None or len(context) > 1 or policy.every is not None:
        return
    if policy.target is not None or positions_of(policy.budget, total, protected=0) < total:
        raise InvalidValueError(
            f"the {len(tokens)} tokens of {shown(texts[1])} follow no context, so that nothing is "
            "evicted before they are read, though they exceed the budget "
            f"{written(policy.budget)}. Use a task of rolling likelihoods, a policy that evicts "
            "while it decodes (every=1), or a larger budget."
        )


def _with_one_context(requests: Sequence[Request]) -> Iterator[list[int]]:
    """Yield the places of requests that have the same context; each window stands alone."""
    groups: dict[Any, list[int]] = {}
    for place, (texts, context, _) in enumerate(requests):
        key = place if texts is None else tuple(context)
        groups.setdefault(key, []).append(place)
    yield from groups.values()
