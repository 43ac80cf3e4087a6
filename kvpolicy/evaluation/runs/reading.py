"""A model that reads and writes with one cache, while what the cache holds is counted."""

from __future__ import annotations

import copy
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kvpolicy.evaluation.caches import copied_cache, shares_held
from kvpolicy.evaluation.runs.prompt import Prompt
from kvpolicy.huggingface.cache_argument import handed
from kvpolicy.huggingface.report import CacheReport, report_of

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase


class Reading:
    """One text, read with one cache.

    `footprint` adds up, over the tokens that were read, how many entries attention had then, for
    one key/value head and summed over layers; `full_footprint` is that of a full cache.
    `positions` is how many positions of the prompt a key/value head holds when the answer begins,
    on average. `first` are the seconds to the first token of an answer, the context's included;
    `steps` those of each later one.
    """

    def __init__(self, model: PreTrainedModel, cache: Cache) -> None:
        self.model, self.cache = model, cache
        self.footprint = self.full_footprint = 0
        self.positions: float | None = None
        self.first: float | None = None
        self.steps: list[float] = []
        self._behind: Tensor | None = None
        self._begun_seconds = 0.0

    def report(self) -> CacheReport:
        """Say what the cache holds."""
        return report_of(self.cache)

    def begin(self, context: Int[Tensor, "1 T"]) -> None:
        """Read a context, about which `ask` then asks."""
        started = time.perf_counter()
        self._behind = self.read(context)
        self._wait()
        self._begun_seconds = time.perf_counter() - started

    @contextmanager
    def branched(self) -> Iterator[Reading]:
        """Give a reading that goes on from here with a copy of the cache."""
        with copied_cache(self.cache) as cache:
            branch = copy.copy(self)
            branch.cache, branch.steps = cache, []
            self._wait()
            yield branch

    def ask(self, prompt: Prompt) -> Float[Tensor, " V"]:
        """Read the context in one forward and the question token by token; return the last logits.

        A context that `begin` has read is not read again. A forward of one token evicts nothing,
        unless the policy evicts while it decodes.
        """
        logits = self.read(prompt.context) if self._behind is None else self._behind
        for token in prompt.question.split(1, dim=1):
            logits = self.read(token) if token.shape[1] else logits
        return logits

    def read(self, ids: Int[Tensor, "1 Q"]) -> Float[Tensor, " V"]:
        """Read tokens in one forward, and return the logits behind the last."""
        return self._forward(ids, logits_to_keep=1)[-1]

    def _forward(self, ids: Int[Tensor, "1 Q"], **options: Any) -> Float[Tensor, "kept V"]:
        before = [(layer.held, layer.seen) for layer in self.report().layers]
        entries, full = entries_of_forward(before, ids.shape[1])
        self.footprint += entries
        self.full_footprint += full
        output = self.model(
            input_ids=ids.to(self.model.device), **handed(self.cache, to=self.model), **options
        )
        logits: Tensor = output.logits[0].float()
        return logits

    def write(
        self, prompt: Prompt, *, limit: int, ends: Collection[int], least: int = 0
    ) -> list[int]:
        """Write at most `limit` tokens by greedy decoding, up to one that ends the text.

        The first `least` tokens are none that ends it. A token that ends it is not returned.
        """
        started, written = time.perf_counter() - self._begun_seconds, list[int]()
        token = _likeliest(self.ask(prompt), ends if least else ())
        self.first = time.perf_counter() - started
        self.see(prompt)
        while token not in ends:
            written.append(token)
            if len(written) == limit:
                break
            started = time.perf_counter()
            logits = self.read(torch.tensor([[token]]))
            token = _likeliest(logits, ends if len(written) < least else ())
            self.steps.append(time.perf_counter() - started)
        return written

    def follow(
        self, prompt: Prompt, tokens: Sequence[int] | None, *, limit: int, ends: Collection[int]
    ) -> tuple[list[int], Float[Tensor, "F V"]]:
        """Read a prompt and what goes on from it; return that, and the log-probabilities before.

        None goes on by greedy decoding, at most `limit` tokens, up to one of `ends`, included.
        """
        logits, given, before = self.ask(prompt), list(tokens or ()), list[Tensor]()
        self.see(prompt)
        while True:
            before.append(logits.log_softmax(-1))
            if tokens is None:
                given.append(int(logits.argmax()))
            token = given[len(before) - 1]
            last = len(given) if tokens is not None else limit
            if len(before) == last or (tokens is None and token in ends):
                return given, torch.stack(before)
            logits = self.read(torch.tensor([[token]]))

    def see(self, prompt: Prompt) -> None:
        """Count how many positions of the prompt are held."""
        self.positions = float(shares_held(self.cache, torch.tensor([prompt.ids])).sum())

    def loss(self, logits: Float[Tensor, " V"], ids: Sequence[int]) -> float:
        """Return the negative log-likelihood of tokens, read one by one as in decoding.

        `logits` are those behind what was read before.
        """
        total = 0.0
        for place, token in enumerate(ids):
            total -= float(torch.log_softmax(logits.double(), dim=-1)[token])
            if place + 1 < len(ids):
                logits = self.read(torch.tensor([[token]]))
        return total

    def converse(self, prompt: Prompt) -> tuple[float, int]:
        """Read a conversation turn by turn; return the loss of the agent's tokens and their number.

        What stands between the agent's turns is read in one forward, at whose end the cache is
        evicted, except for its last token. That token and the agent's are read one by one.
        """
        ids, read, total, count = prompt.context, 0, 0.0, 0
        for start, end in prompt.scored:
            # The first token of all has nothing before it that could predict it.
            start = max(start, 1)
            if start - 1 > read:
                self.read(ids[:, read : start - 1])
            logits = self.read(ids[:, start - 1 : start])
            total += self.loss(logits, ids[0, start:end].tolist())
            count += max(0, end - start)
            read = max(start, end - 1)
        self.see(prompt)
        return total, count

    def stream(self, ids: Int[Tensor, "1 T"], chunk: int) -> Float[Tensor, " F"]:
        """Read a text `chunk` tokens at a time; return the loss of each token but the first.

        A forward of several tokens evicts at its end. For single tokens the policy must evict
        while it decodes.
        """
        losses, follows = list[Tensor](), ids[0, 1:].to(self.model.device)
        for start in range(0, ids.shape[1] - 1, chunk):
            known = follows[start : start + chunk]
            logits = self._forward(ids[:, start : start + len(known)])
            losses.append(torch.nn.functional.cross_entropy(logits, known, reduction="none"))
        return torch.cat(losses).double().cpu()

    def _wait(self) -> None:
        """Let a GPU finish, so that its work is not counted with what comes next."""
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)


def entries_of_forward(before: Sequence[tuple[int, int]], new: int) -> tuple[int, int]:
    """Return how many entries the attention of `new` tokens has, and would have in a full cache.

    `before` has the positions that each layer held and had seen, of a head on average. Token i has
    those entries, and the i tokens up to itself.
    """
    triangle, layers = new * (new + 1) // 2, before or [(0, 0)]
    return (
        sum(held * new + triangle for held, _ in layers),
        sum(seen * new + triangle for _, seen in layers),
    )


def _likeliest(logits: Float[Tensor, " V"], but: Collection[int]) -> int:
    """Return the token with the largest logit, except for some."""
    if but:
        places = torch.tensor(list(but), device=logits.device)
        logits = logits.index_fill(0, places, -torch.inf)
    return int(logits.argmax())


def held_back(prompt: Prompt) -> Prompt:
    """Return the prompt with its last token as a question, so that it reads the evicted cache.

    Otherwise the logits behind a prompt come from the forward at whose end it is evicted: a single
    token of an answer would be the full cache's, whatever the policy.
    """
    if prompt.question.shape[1] or prompt.context.shape[1] < 2:
        return prompt
    return Prompt(context=prompt.context[:, :-1], question=prompt.context[:, -1:])


def ends_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the tokens that end a text, of the model and of the tokenizer."""
    found: set[Any] = {tokenizer.eos_token_id}
    configuration = getattr(model, "generation_config", None)
    configured = getattr(configuration, "eos_token_id", None)
    found |= set(configured) if isinstance(configured, list | tuple) else {configured}
    return frozenset(int(token) for token in found if token is not None)
