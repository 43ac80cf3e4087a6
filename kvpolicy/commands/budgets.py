"""Reads budgets from text: 1024, 0.25 or 25%."""

from __future__ import annotations

from kvpolicy.budget import Budget, checked_budget
from kvpolicy.errors import InvalidValueError, shown


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
