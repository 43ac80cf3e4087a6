"""A table for each bed: errors, their differences from ReST-KV's, and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kvpolicy.evaluation.beds.answers import Answered
from kvpolicy.evaluation.beds.entrants import BASE
from kvpolicy.evaluation.beds.measurement import Measured
from kvpolicy.evaluation.fidelity.rows import Estimate


def table(
    rows: Sequence[Measured], model: str = "the needle model", *, options: str = "", note: str = ""
) -> str:
    """Return a table in Markdown for each bed: errors, and differences from ReST-KV's.

    `options` are those of the command that prints it.
    """
    counted = any(row.answers for row in rows)
    lines = [
        f"# Policies of equal budget on {model}",
        "",
        "Each cell has the error, ± its standard error over prompts, and how much more it is than "
        f"that of `{BASE}`, prompt by prompt"
        f"{', and the share of right answers' if counted else ''}. This prints the tables:",
        "",
        f"    python -m kvpolicy.evaluation.beds {options}".rstrip(),
        "",
        *([note, ""] if note else []),
    ]
    for bed in dict.fromkeys(row.bed for row in rows):
        mine = [row for row in rows if row.bed == bed]
        budgets = sorted({row.budget for row in mine})
        lines += [
            f"## {bed} ({max(len(row.errors) for row in mine)} prompts)",
            "",
            f"| policy | {' | '.join(f'{budget} positions' for budget in budgets)} |",
            f"|---|{'---|' * len(budgets)}",
        ]
        for name in dict.fromkeys(row.name for row in mine):
            cells = [_cell(mine, name, budget) for budget in budgets]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        refused = [row for row in mine if row.refusal is not None]
        lines += ["", *(f"{row.name} at {row.budget}: {row.refusal}" for row in refused)]
        lines += [""] * bool(refused)
    return "\n".join(lines).rstrip()


def _cell(rows: Sequence[Measured], name: str, budget: int) -> str:
    found = {row.name: row for row in rows if row.budget == budget}
    mine = found[name]
    if mine.refusal is not None:
        return "refused"
    error = Estimate.mean(mine.errors)
    told = [f"{error.value:.3f} ± {error.error:.3f}"]
    if name != BASE and BASE in found and found[BASE].refusal is None:
        pairs = zip(mine.errors, found[BASE].errors, strict=True)
        difference = Estimate.mean([one - base for one, base in pairs])
        told.append(f"{difference.value:+.3f} ± {difference.error:.3f}")
    if mine.answers:
        told.append(f"{_share(mine.answers):.0%}")
    return "; ".join(told)


def _share(found: Sequence[Answered]) -> float:
    """Return the share of right answers; the last portion may be smaller."""
    right = [each for portion in found for each in portion.right]
    return sum(right) / len(right)


def note(full: Mapping[str, Sequence[Answered]], rows: Sequence[Measured]) -> str:
    """Say what the full cache answers on each bed, and how much all others hold."""
    shares = ", ".join(f"{name}: {_share(found):.0%}" for name, found in full.items())
    held = [each.held / row.budget for row in rows for each in row.answers]
    sizes = [
        [each.nbytes for row in rows if row.budget == budget for each in row.answers]
        for budget in sorted({row.budget for row in rows})
    ]
    nbytes = ", ".join(f"{min(each):,.0f} to {max(each):,.0f}" for each in sizes)
    return (
        f"With the full cache, right answers are {shares}. Behind the prompt, each policy holds "
        f"{min(held):.1%} to {max(held):.1%} of its budget, on average over layers and heads. "
        f"A cache then takes {nbytes} bytes for a prompt, with what its method remembers."
    )
