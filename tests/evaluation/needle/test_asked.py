"""Questions that are drawn from one seed are always the same."""

from kvpolicy.evaluation.needle.asked import Asked, drawn


def write(rng, tokens, facts):
    return Asked(context=f"{rng.random()}", question=f"of {tokens}", answer=f"{facts}")


def test_a_text_ends_in_its_question():
    assert Asked(context="the cow sings .", question="who sings", answer="cow").text == (
        "the cow sings . who sings"
    )


def test_another_name_or_size_draws_other_texts():
    given = {"tokens": 64, "facts": 2, "count": 3, "seed": 0}
    found = drawn(write, "one", **given)
    assert found == drawn(write, "one", **given)
    assert len({each.context for each in found}) == 3
    for other in (("two", given), ("one", given | {"tokens": 65}), ("one", given | {"facts": 3})):
        again = drawn(write, other[0], **other[1])
        assert not {each.context for each in found} & {each.context for each in again}
