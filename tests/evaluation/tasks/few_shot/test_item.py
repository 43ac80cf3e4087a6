"""Items are asked behind the same examples."""

from __future__ import annotations

from kvpolicy.evaluation.tasks.few_shot.item import Item, asked


def test_every_item_is_asked_behind_the_same_text():
    items = [
        Item(name=str(place), text=f"{place} + 1 =", choices=[" 2", " 3"], answer=place - 1)
        for place in (1, 2)
    ]
    samples = list(asked(items, items, instruction="Add.\n\n", outside=True))
    assert {sample.context for sample in samples} == {"Add.\n\n1 + 1 = 2\n\n2 + 1 = 3\n\n"}
    assert [sample.question for sample in samples] == ["1 + 1 =", "2 + 1 ="]
    assert [sample.answers for sample in samples] == [(" 2",), (" 3",)]
    assert all(sample.outside and sample.chat is False for sample in samples)
