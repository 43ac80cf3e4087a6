"""A budget: how many positions each key/value head and layer may keep, and how it is written."""

from __future__ import annotations

import logging
import math
import numbers
from typing import Any, TypeAlias

from kvpolicy.errors import InvalidValueError, shown

Budget: TypeAlias = int | float
"""Positions (int), or the share of the prompt that is kept (float in (0, 1])."""

LARGEST = 2**53
"""Up to here floats, JSON and tensors count alike."""

_log = logging.getLogger("kvpolicy")
_SAID: set[tuple[float, int]] = set()


def checked_budget(budget: Any) -> Budget:
    """Return a budget that makes sense, or say what is wrong with it.

    >>> checked_budget(0.25), checked_budget(1024)
    (0.25, 1024)
    """
    if isinstance(budget, numbers.Integral) and not isinstance(budget, bool):
        positions = int(budget)
        if positions < 1:
            raise InvalidValueError(
                f"budget must be at least 1 position, but is {shown(positions)}. Give positions as "
                "an int (budget=1024) or a share of the prompt as a float (budget=0.25)."
            )
        if positions > LARGEST:
            raise InvalidValueError(
                f"budget must be at most {LARGEST} positions, but is {shown(positions)}."
            )
        return positions
    if isinstance(budget, numbers.Real) and not isinstance(budget, bool):
        share = _as_share(budget)
        if not 0 < share <= 1:
            whole = share > 1 and share.is_integer()
            hint = f" For positions give an int: budget={int(share)}." if whole else ""
            raise InvalidValueError(
                f"a float budget is a share of the prompt, above 0 and at most 1, "
                f"but is {share!r}.{hint}"
            )
        return share
    raise InvalidValueError(
        "budget must be an int (positions) or a float (share of the prompt), but is "
        f"{shown(budget)}."
    )


def read_budget(text: str) -> Budget:
    """Read a budget: a number of positions, or a share of the prompt.

    Raises InvalidValueError for anything else.

    >>> read_budget("1024"), read_budget("0.25"), read_budget("25 %")
    (1024, 0.25, 0.25)
    """
    figure = text.strip()
    try:
        if figure.endswith("%"):
            return checked_budget(float(figure[:-1]) / 100)
        # Python reads 1_024 as a number. 1,024 is refused below.
        return checked_budget(int(figure) if figure.lstrip("+-").isdigit() else float(figure))
    except InvalidValueError:
        raise
    except ValueError:
        raise InvalidValueError(
            f"budget must be positions (1024) or a share of the prompt (0.25 or 25%), "
            f"but is {shown(text)}."
        ) from None


def _as_share(budget: numbers.Real) -> float:
    try:
        return float(budget)
    except OverflowError:
        return math.inf


def positions_of(budget: Budget, seen: int, *, protected: int) -> int:
    """Return the positions that `budget` allows after `seen` tokens.

    A share is rounded down, but never below what sinks and recent tokens protect.

    >>> positions_of(0.25, 1000, protected=32), positions_of(0.25, 60, protected=32)
    (250, 32)
    """
    if isinstance(budget, int):
        return budget
    # 0.29 * 100 is 28.999999999999996: a share of 29 % of 100 positions is 29.
    share = math.floor(budget * seen + 1e-9)
    if share < protected < seen:
        _say_once(budget, seen, share, protected)
    return max(1, protected, share)


def _say_once(budget: float, seen: int, share: int, protected: int) -> None:
    """Log that a share is raised to what is always kept; once for each share in a process."""
    if (budget, protected) not in _SAID:
        _SAID.add((budget, protected))
        _log.warning(
            "a budget of %g %% of %d tokens is %d positions, but sinks and recent tokens protect "
            "%d: these are kept. Give a larger share, or a smaller `recent` or window.",
            *(100 * budget, seen, share, protected),
        )
