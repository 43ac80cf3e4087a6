"""An inspection in words: what is held, what the model writes, and why a wrong answer is wrong."""

from __future__ import annotations

from kvpolicy.evaluation.inspection.cause import Cause
from kvpolicy.evaluation.inspection.inspection import Inspection

NOTES = (
    "The cache is looked at when the answer begins. The first token of an answer comes from the "
    "forward that reads the prompt with full attention, whatever the policy.",
    "An answer is right if it contains the expected text, whatever the case of letters. Needed "
    "tokens are those of the prompt that hold that text, or what --needed gives.",
    "Missing, broken apart, whole: a head holds none of the needed tokens, some, or all of a "
    "place where they stand. A head counts as much as it attends to these tokens with the full "
    "cache while the answer is written. The largest of the three shares decides; whole means that "
    "the tokens are kept, but outweighed.",
    "Attention is measured where the answer goes wrong: at the token before the first other one. "
    "It is the mean over layers and heads.",
)
_FIRST = {
    "full": "The model is wrong with the full cache too. Eviction is not the cause.",
    "unknown": (
        "The expected text stands nowhere in the prompt, so it is not known which tokens are "
        "needed. Give them with --needed."
    ),
    "missing": "Needed tokens are missing.",
    "broken": "Needed tokens are broken apart: heads hold some of them, and not the others.",
    "outweighed": "Needed tokens are kept, but outweighed.",
}


def kept(found: Inspection) -> str:
    """Say how many tokens there are, and how many of them a head holds."""
    tokens = len(found.prompt.pieces)
    held = float(found.shares.sum())
    gone = int((found.shares == 0).sum())
    return (
        f"{tokens:,} tokens; a key/value head holds {held:,.1f} of them on average "
        f"({_percent(held / tokens)}). No head holds {gone:,} of them."
    )


def answers(found: Inspection, name: str) -> list[tuple[str, str]]:
    """Return what was written, and whether it is right."""
    lines = [
        ("full cache", _judged(found.full_text, found.full_right)),
        (name, _judged(found.text, found.right)),
    ]
    return lines if found.answer is None else [("expected", found.answer), *lines]


def why(cause: Cause | None) -> list[str]:
    """Say why an answer is wrong, in a few sentences; nothing without a cause."""
    if cause is None:
        return []
    sentences = [_FIRST[cause.verdict]]
    if cause.verdict in ("full", "unknown"):
        return sentences
    sentences.append(
        f"Of the heads that read them with the full cache, {_percent(cause.missing)} hold none of "
        f"them, {_percent(cause.broken)} hold some, and {_percent(cause.whole)} hold them wholly."
    )
    if cause.attention is not None and cause.full_attention is not None:
        sentences.append(
            f"Where the answer goes wrong, they get {_percent(cause.attention)} of the attention. "
            f"With the full cache it is {_percent(cause.full_attention)}."
        )
    if cause.right_if_kept:
        sentences.append("If they are kept, at the same budget, the answer is right.")
    elif cause.right_if_kept is False:
        sentences.append(
            "If they are kept, at the same budget, the answer is still wrong: these tokens alone "
            "are not enough."
        )
    return sentences


def _judged(text: str, right: bool | None) -> str:
    said = text.strip() or "(nothing)"
    return said if right is None else f"{said} ({'right' if right else 'wrong'})"


def _percent(share: float) -> str:
    """Write a share for people.

    >>> _percent(0.255), _percent(0.0004)
    ('26 %', 'less than 0.1 %')
    """
    if 0 < share < 0.001:
        return "less than 0.1 %"
    return f"{100 * share:.0f} %" if share >= 0.0995 or share == 0 else f"{100 * share:.1f} %"
