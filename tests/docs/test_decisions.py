"""Each decision has a number of its own, without gaps."""

from pathlib import Path

DECISIONS = sorted((Path(__file__).parents[2] / "docs/decisions").glob("0*.md"))


def test_numbers_count_up_from_one():
    numbers = [int(page.name.partition("-")[0]) for page in DECISIONS]
    assert numbers == list(range(1, len(DECISIONS) + 1))
