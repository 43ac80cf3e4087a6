"""A budget: how many positions each key/value head and layer may keep, and how it is written."""

from __future__ import annotations

import logging
import math
import numbers
from collections.abc import Mapping
from typing import Any, TypeAlias

import attrs

from kvpolicy.errors import InvalidValueError, shown, suggest

LARGEST = 2**53
"""Up to here floats, JSON and tensors count alike."""

_log = logging.getLogger("kvpolicy")
_SAID: set[tuple[float, int]] = set()

PREFIX = "within"
"""How the text of an error target begins, and its key in JSON."""

OF_POSITIONS = (
    "Give positions as an int (budget=1024), a share of the prompt as a float (budget=0.25), or an "
    "error (budget=kvpolicy.within(0.02))."
)


@attrs.frozen(repr=False)
class Within:
    """An error target: a layer keeps as few positions as hold its error under `error`.

    - `error`: the share of the norm of the layer's output by which eviction may change it, on
      average over the observed queries; above 0 and below 1.
    - `cap`: what a key/value head keeps at most, whatever its error: positions (an int) or a share
      of the prompt (a float). None sets no bound.
    - `window`: how many of the last queries the error is observed for.

    `kvpolicy.within` makes one.
    """

    error: float
    cap: int | float | None = attrs.field(default=None, kw_only=True)
    window: int = attrs.field(default=32, kw_only=True)

    def __attrs_post_init__(self) -> None:
        """Raise InvalidValueError for a target outside (0, 1), and for a cap that is none."""
        error = self.error
        number = isinstance(error, numbers.Real) and not isinstance(error, bool)
        if not number or not 0 < _as_share(error) < 1:
            raise InvalidValueError(
                "an error target is a share of the layer's output, above 0 and below 1, but is "
                f"{shown(error)}. Give for example kvpolicy.within(0.02), for 2 %."
            )
        if isinstance(self.cap, Within | Mapping):
            kinds = "positions (an int) or a share (a float)"
            raise InvalidValueError(
                f"the cap of an error target is {kinds}, not {shown(self.cap)}."
            )
        window = self.window
        if isinstance(window, bool) or not isinstance(window, int) or not 1 <= window <= LARGEST:
            given = shown(window)
            raise InvalidValueError(f"a target's window is an int of at least 1, not {given}.")
        object.__setattr__(self, "error", float(error))
        if self.cap is not None:
            object.__setattr__(self, "cap", checked_budget(self.cap))

    def __repr__(self) -> str:
        cap = "" if self.cap is None else f", cap={self.cap}"
        return f"kvpolicy.within({self.error}{cap}{_unless_32(', window={}', self.window)})"

    def to_dict(self) -> dict[str, Any]:
        """Return what `checked_budget` reads, as plain JSON data.

        >>> Within(0.02, cap=512).to_dict()
        {'within': 0.02, 'window': 32, 'cap': 512}
        """
        cap = {} if self.cap is None else {"cap": self.cap}
        return {PREFIX: self.error, "window": self.window, **cap}


Budget: TypeAlias = int | float | Within
"""Positions (int), the share of the prompt that is kept (float in (0, 1]), or an error target."""


def within(error: float, *, cap: int | float | None = None, window: int = 32) -> Within:
    """Return a budget that is an error: layers keep as few positions as it takes to stay within.

    The error is ||y - y_full|| / ||y_full|| of a layer's attention output y behind its output
    projection, on average over the last `window` queries of the prompt. It is the exact error of
    removing all evicted positions together. No head keeps more than `cap`, positions or a share of
    the prompt; a layer that the cap stops may err more.

    >>> import kvpolicy
    >>> policy = kvpolicy.recipe("snapkv", budget=kvpolicy.within(0.02))
    >>> policy.to_dict()["budget"]
    {'within': 0.02, 'window': 32}

    Raises InvalidValueError for an error outside (0, 1), and for a cap that is no budget.
    """
    return Within(error, cap=cap, window=window)


def checked_budget(budget: Any) -> Budget:
    """Return a budget that makes sense, or say what is wrong with it.

    >>> checked_budget(0.25), checked_budget(1024), checked_budget({"within": 0.02})
    (0.25, 1024, kvpolicy.within(0.02))
    """
    if isinstance(budget, Within):
        return budget
    if isinstance(budget, Mapping):
        return _target_of(budget)
    if isinstance(budget, numbers.Integral) and not isinstance(budget, bool):
        positions = int(budget)
        if positions < 1:
            raise InvalidValueError(
                f"budget must be at least 1 position, but is {shown(positions)}. {OF_POSITIONS}"
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
        "budget must be an int (positions), a float (share of the prompt) or an error target, but "
        f"is {shown(budget)}. {OF_POSITIONS}"
    )


def read_budget(text: str) -> Budget:
    """Read positions, a share, or an error target; raise InvalidValueError for anything else.

    >>> read_budget("1024"), read_budget("0.25"), read_budget("25 %")
    (1024, 0.25, 0.25)
    >>> read_budget("within:2%"), read_budget("within:0.02:512")
    (kvpolicy.within(0.02), kvpolicy.within(0.02, cap=512))
    """
    head, colon, rest = text.strip().partition(":")
    if colon and head.strip() == PREFIX:
        error, colon, cap = rest.partition(":")
        return within(_number(error, text), cap=_number(cap, text) if colon else None)
    return checked_budget(_number(text, text))


def written(budget: Budget) -> str:
    """Write a budget as people do.

    >>> written(1024), written(0.125), written(within(0.02, cap=512))
    ('1024', '12.5 %', 'within 2 %, at most 512')
    """
    if isinstance(budget, Within):
        cap = "" if budget.cap is None else f", at most {written(budget.cap)}"
        window = _unless_32(", window {}", budget.window)
        return f"{PREFIX} {100 * budget.error:.10g} %{cap}{window}"
    return str(budget) if isinstance(budget, int) else f"{100 * budget:.10g} %"


def plain(budget: Budget | None) -> Any:
    """Return a budget as plain JSON data, which `checked_budget` reads."""
    return budget.to_dict() if isinstance(budget, Within) else budget


def order_of(budget: Budget) -> tuple[int, float, str]:
    """Return a key that sorts budgets: positions, shares, targets; those that keep less first."""
    if isinstance(budget, Within):
        return 2, -budget.error, written(budget)
    return int(isinstance(budget, float)), budget, ""


def positions_of(budget: Budget, seen: int, *, protected: int) -> int:
    """Return the positions that `budget` allows after `seen` tokens.

    A share is rounded down, but never below what is protected. A target allows all, or its cap.

    >>> positions_of(0.25, 1000, protected=32), positions_of(0.25, 60, protected=32)
    (250, 32)
    """
    if isinstance(budget, Within):
        if budget.cap is None:
            return max(1, seen)
        return positions_of(budget.cap, seen, protected=protected)
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


def _target_of(data: Mapping[Any, Any]) -> Within:
    known = (PREFIX, "cap", "window")
    for name in data:
        if name not in known:
            hint = f"{suggest(name, known)} It has: {', '.join(known)}."
            raise InvalidValueError(f"an error target has no {shown(name)}.{hint}")
    if PREFIX not in data:
        raise InvalidValueError(
            f"a budget that is a mapping has 'within', not {shown(dict(data))}."
        )
    return Within(data[PREFIX], cap=data.get("cap"), window=data.get("window", 32))


def _number(text: str, whole: str) -> int | float:
    figure = text.strip()
    try:
        if figure.endswith("%"):
            return float(figure[:-1]) / 100
        # Python reads 1_024 as a number. 1,024 is refused below.
        return int(figure) if figure.lstrip("+-").isdigit() else float(figure)
    except ValueError:
        raise InvalidValueError(
            "budget must be positions (1024) or a share of the prompt (0.25 or 25%), or an error "
            f"({PREFIX}:2%, or {PREFIX}:2%:512 with at most 512 positions), but is {shown(whole)}."
        ) from None


def _unless_32(text: str, window: int) -> str:
    return "" if window == 32 else text.format(window)


def _as_share(budget: Any) -> float:
    try:
        return float(budget)
    except OverflowError:
        return math.inf
