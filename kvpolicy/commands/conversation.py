"""A conversation with a model, whose cache goes on from turn to turn."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import torch
from jaxtyping import Int
from rich.console import Console
from torch import Tensor

from kvpolicy.commands.chosen import Chosen
from kvpolicy.commands.holdings import holdings
from kvpolicy.commands.prefill import prefill_progress
from kvpolicy.commands.prompts import encoded, too_long
from kvpolicy.evaluation.caches import opened_cache
from kvpolicy.huggingface.cache_argument import handed

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedTokenizerBase

Message = dict[str, str]


def is_terminal() -> bool:
    """Say whether somebody types on standard input."""
    return sys.stdin is not None and sys.stdin.isatty()


def asked(first: Iterable[str]) -> Iterator[str]:
    """Give the first texts, and then what is typed, until the input ends."""
    yield from first
    console = Console(stderr=True)
    while True:
        try:
            text = console.input("[bold]>[/bold] ")
        except EOFError:
            console.print()
            return
        if text.strip():
            yield text


@attrs.define(kw_only=True)
class Conversation:
    """What was said so far. `in_template` puts it into the model's chat template."""

    tokenizer: PreTrainedTokenizerBase
    choice: Chosen
    sampling: Mapping[str, Any]
    in_template: bool
    messages: list[Message] = attrs.field(factory=list, init=False)
    read: Int[Tensor, "1 T"] = attrs.field(init=False)
    """What the model has read and written."""

    @read.default
    def _nothing(self) -> Int[Tensor, "1 T"]:
        return torch.empty((1, 0), dtype=torch.long, device="cpu")

    def check(self, texts: Sequence[str]) -> None:
        """Raise InvalidValueError for texts that cannot be given to the model."""
        for text in texts or ["hello"]:
            self._encoded([{"role": "user", "content": text}])

    def hold(self, model: Any, texts: Iterable[str]) -> None:
        """Answer one text after another, and say each time what the cache holds."""
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        policy, extras = self.choice.policy, self.choice.extras
        with opened_cache(model, policy, **extras) as cache:
            for text in texts:
                self.messages.append({"role": "user", "content": text})
                tokens = self._encoded(self.messages)
                if not self._goes_on(tokens["input_ids"]):
                    console.print(
                        "The chat template changed what was said: all of it is read anew."
                    )
                    cache = self._emptied(cache, model)
                self._answer(model, cache, tokens, console)

    def _answer(
        self, model: Any, cache: Cache, tokens: Mapping[str, Tensor], console: Console
    ) -> None:
        """Write the answer while it is generated, then report what the cache holds."""
        from transformers import TextStreamer

        from kvpolicy.huggingface.report import report_of

        inputs = {name: tensor.to(model.device) for name, tensor in tokens.items()}
        given = inputs["input_ids"].shape[1]
        new = given - self.read.shape[1]
        if note := too_long(model, given):
            console.print(note)
        streamer: Any = TextStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        with prefill_progress(model, new, console):
            said = model.generate(
                **inputs,
                **handed(cache, to=model.generate),
                streamer=streamer,
                num_beams=1,
                **self.sampling,
            )
        self.read = said.cpu()
        content = self.tokenizer.decode(said[0, given:], skip_special_tokens=True)
        self.messages.append({"role": "assistant", "content": str(content)})
        console.print(holdings(report_of(cache), read=new, written=said.shape[1] - given))

    def _encoded(self, messages: Sequence[Message]) -> dict[str, Tensor]:
        return encoded(self.tokenizer, messages, chat=self.in_template)

    def _goes_on(self, tokens: Int[Tensor, "1 T"]) -> bool:
        before = self.read.shape[1]
        return tokens.shape[1] > before and torch.equal(tokens[:, :before], self.read)

    def _emptied(self, cache: Cache, model: Any) -> Cache:
        from transformers import DynamicCache

        from kvpolicy.huggingface.cache import PolicyCache
        from kvpolicy.huggingface.model.config import decoder_config

        self.read = self.read[:, :0]
        if isinstance(cache, PolicyCache):
            cache.reset()
            return cache
        return DynamicCache(config=decoder_config(model))
