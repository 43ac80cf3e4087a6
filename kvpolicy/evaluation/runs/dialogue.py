"""From a conversation to tokens, of which those of the agent's turns are told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation.runs.prompt import Prompt, PromptFormat, common
from kvpolicy.task import AGENTS, Sample


def dialogue_prompt(style: PromptFormat, sample: Sample) -> Prompt:
    """Return the tokens of a conversation, and which of them the agent wrote.

    With the chat template of `style`, or else as lines `User: ...` and `Agent: ...`. A context
    stands in front of the first turn. A longer conversation than `style.longest` loses its end.

    Raises InvalidValueError if there is no agent's turn in it, or if the chat template writes the
    turns otherwise than one after the other.
    """
    messages = [dict(each) for each in sample.messages]
    if not any(each["role"] in AGENTS for each in messages):
        raise InvalidValueError(
            f"sample {sample.name!r} has no turn of an agent. Give messages, some of them with the "
            f"role {' or '.join(map(repr, AGENTS))}."
        )
    if sample.context:
        messages[0]["content"] = f"{sample.context}\n\n{messages[0]['content']}"
    chat = style.chat if sample.chat is None else sample.chat
    text, spans = _templated(style, sample, messages) if chat else _lines(messages)
    ids = style.ids(text, special=not chat)[: style.longest]
    places = [
        tuple(common(ids, style.ids(text[:place], special=not chat)) for place in span)
        for span in spans
    ]
    return Prompt(
        context=torch.tensor([ids]),
        question=torch.empty((1, 0), dtype=torch.long),
        scored=tuple((start, end) for start, end in places if start < end),
    )


def _lines(messages: Sequence[Mapping[str, str]]) -> tuple[str, list[tuple[int, int]]]:
    """Return the text, and where the agent's turns begin and end."""
    text, spans = "", []
    for message in messages:
        is_agent = message["role"] in AGENTS
        text += "Agent:" if is_agent else f"{message['role'].capitalize()}:"
        start = len(text)
        text += f" {message['content'].strip()}"
        if is_agent:
            spans.append((start, len(text)))
        text += "\n"
    return text, spans


def _templated(
    style: PromptFormat, sample: Sample, messages: Sequence[Mapping[str, str]]
) -> tuple[str, list[tuple[int, int]]]:
    text, spans = style.templated(sample, messages), []
    for number, message in enumerate(messages):
        if message["role"] not in AGENTS:
            continue
        before = _before(style, sample, messages[:number], text)
        start = text.find(message["content"].strip(), before)
        if before < 0 or start < 0:
            raise InvalidValueError(
                f"the chat template does not write turn {number + 1} of sample {sample.name!r} "
                "behind the turns before it, so its tokens cannot be told apart. Leave the chat "
                "template out."
            )
        spans.append((start, start + len(message["content"].strip())))
    return text, spans


def _before(
    style: PromptFormat, sample: Sample, messages: Sequence[Mapping[str, str]], text: str
) -> int:
    """Return where the turn behind messages begins, or -1 if the text does not begin with them."""
    if not messages:
        return 0
    begun = (style.templated(sample, messages, generation=each) for each in (True, False))
    return next((len(each) for each in begun if text.startswith(each)), -1)
