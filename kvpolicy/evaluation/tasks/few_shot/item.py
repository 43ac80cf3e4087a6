"""A question with choices, as an example and as a sample."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import attrs

from kvpolicy.task import Sample


@attrs.frozen(kw_only=True)
class Item:
    """A question, the choices as they follow it, and the place of the right one."""

    name: str
    text: str
    choices: Sequence[str]
    answer: int

    @property
    def solved(self) -> str:
        """The item as an example."""
        return f"{self.text}{self.choices[self.answer]}\n\n"


def asked(
    items: Iterable[Item], examples: Iterable[Item], *, instruction: str = "", outside: bool
) -> Iterator[Sample]:
    r"""Yield a sample for each item, behind the same instruction and examples.

    >>> item = Item(name="1", text="2 + 2 =", choices=[" 3", " 4"], answer=1)
    >>> [sample] = asked([item], [item], outside=True)
    >>> sample.context + sample.question
    '2 + 2 = 4\n\n2 + 2 ='
    """
    context = instruction + "".join(each.solved for each in examples)
    for item in items:
        yield Sample(
            name=item.name,
            context=context,
            question=item.text,
            answers=(item.choices[item.answer],),
            choices=item.choices,
            chat=False,
            outside=outside,
        )
