"""An inspection as a page of HTML that needs nothing beside itself."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch

from kvpolicy.evaluation.inspection import wording
from kvpolicy.evaluation.inspection.inspection import Inspection
from kvpolicy.evaluation.reports.rendering import rendered

STRETCHES = 16
"""How many stretches a prompt is cut into at most."""
GAMMA = 0.6
"""Of shades; below 1, so that what few heads hold can be seen."""


def page(found: Inspection, *, name: str, model: str) -> str:
    """Return the page; `name` is the policy's, `model` is the model's."""
    starts, by_layer = _by_layer(found)
    return rendered(
        "inspection.html",
        title=name,
        facts=f"{model}. {wording.kept(found)}",
        answers=wording.answers(found, name),
        why=wording.why(found.cause),
        needed=bool(found.needed),
        gamma=GAMMA,
        runs=list(runs(found)),
        stretches=starts,
        by_layer=by_layer,
        heads=list(range(max(len(layer) for layer in found.held))),
        by_head=_by_head(found),
        notes=wording.NOTES,
    )


def runs(found: Inspection) -> Iterator[dict[str, Any]]:
    """Yield stretches of the text that are shaded alike: the text, its share, its classes."""
    needed = {position for place in found.needed for position in place}
    # A tenth is as fine as a reader can tell.
    levels = [-(-int(1000 * share) // 100) / 10 for share in found.shares.tolist()]
    keys = [(level, place in needed) for place, level in enumerate(levels)]
    for (level, asked), places in groupby(range(len(keys)), key=keys.__getitem__):
        names = [("gone", level == 0), ("half", level > 0.5), ("needed", asked)]
        yield {
            "text": "".join(found.prompt.pieces[place] for place in places),
            "share": round(level**GAMMA, 2),
            "names": " ".join(name for name, holds in names if holds),
        }


def _by_layer(found: Inspection) -> tuple[list[int], list[tuple[int, list[dict[str, Any]]]]]:
    """Return where stretches begin, and for each layer the share that is held of each."""
    tokens = len(found.prompt.pieces)
    width = -(-tokens // STRETCHES)
    lines = []
    for layer, held in enumerate(found.held):
        parts = held.float().mean(0).split(width)
        lines.append((layer, [_place(float(part.mean())) for part in parts]))
    return list(range(0, tokens, width)), lines


def _by_head(found: Inspection) -> list[tuple[int, list[dict[str, Any]]]]:
    counts = [layer.sum(-1) for layer in found.held]
    most = max(1, int(torch.cat(counts).max()))
    return [
        (
            layer,
            [
                {"share": round(count / most, 2), "text": f"{count:,}"}
                for count in of_heads.tolist()
            ],
        )
        for layer, of_heads in enumerate(counts)
    ]


def _place(share: float) -> dict[str, Any]:
    return {"share": round(share, 2), "text": f"{100 * share:.0f}"}
