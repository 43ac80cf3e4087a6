"""Print what came of an exception at every line of every operation; fail if an answer is wrong."""

from __future__ import annotations

import sys

import torch
from rich.console import Console
from rich.table import Table

from kvpolicy.exactness.faults.operations import OPERATIONS
from kvpolicy.exactness.faults.sweep import SETTINGS, Outcome, Subject, counts

OUTCOMES: tuple[Outcome, ...] = ("exact", "refused", "wrong", "unclear")
STEPS = {"save": 50}
"""Saving runs thousands of lines and changes nothing of a cache: one in so many is tried."""


def main(step: int = 1) -> int:
    """Sweep all settings and operations; return how many injections were wrong or unclear."""
    torch.set_num_threads(1)
    console, table = Console(), Table("model", "recipe", "storage", "operation", *OUTCOMES)
    total, bad = dict.fromkeys(OUTCOMES, 0), 0
    for setting in SETTINGS:
        for operation in OPERATIONS:
            faults = list(Subject(*setting, operation).faults(step=step * STEPS.get(operation, 1)))
            found = counts(faults)
            table.add_row(*map(str, setting), operation, *(str(found[name]) for name in OUTCOMES))
            for name in OUTCOMES:
                total[name] += found[name]
            for fault in faults:
                if fault.outcome in ("wrong", "unclear"):
                    bad += 1
                    told = f"{fault.outcome}: {setting} {operation} {fault.where} {fault.detail}"
                    console.print(told, markup=False)
    table.add_section()
    table.add_row("all", "", "", "", *(str(total[name]) for name in OUTCOMES))
    console.print(table)
    return bad


if __name__ == "__main__":
    sys.exit(min(1, main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)))
