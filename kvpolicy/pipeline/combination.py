"""Which parts and settings go together; the rest is refused when a policy is built."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kvpolicy.errors import InvalidValueError, shown
from kvpolicy.pipeline.capabilities import ChecksParts, across_heads, is_prefill_only, is_uneven
from kvpolicy.pipeline.checks import at_work, title

if TYPE_CHECKING:
    from kvpolicy.policy import Policy

KINDS = ("scorer", "smoother", "allocator", "selector", "compactor")


def check_combination(policy: Policy) -> None:
    """Raise InvalidValueError, with the reason, for a policy that cannot work."""
    _check_window(policy)
    _check_protected(policy)
    _check_heads(policy)
    _check_every(policy)
    _check_parts(policy)


def _check_window(policy: Policy) -> None:
    with at_work(policy, "scorer"):
        window = policy.scorer.window
    if window is not None and (type(window) is not int or window < 1):
        raise InvalidValueError(
            f"the window of {type(policy.scorer).__name__} must be an int of at least 1, or None "
            f"for all queries, but is {shown(window)}."
        )


def _check_protected(policy: Policy) -> None:
    if isinstance(policy.budget, int) and policy.budget < policy.protected:
        recent = policy.protected - policy.sinks
        raise InvalidValueError(
            f"budget {policy.budget} is smaller than the {policy.protected} positions that are "
            f"always kept: sinks {policy.sinks} + recent {recent}. Raise the budget, or lower "
            "sinks or recent (recent defaults to the scorer's window)."
        )


def _check_heads(policy: Policy) -> None:
    if not _says(policy, "allocator", is_uneven):
        return
    for kind in KINDS:
        if _says(policy, kind, across_heads):
            raise InvalidValueError(
                f"{title(policy, kind)} needs all heads of a layer to hold the same positions, "
                f"but {title(policy, 'allocator')} gives each head a budget of its own. Use an "
                "allocator that treats the heads of a layer alike, such as 'uniform'."
            )


def _check_every(policy: Policy) -> None:
    if policy.every is None:
        return
    for kind in KINDS:
        if _says(policy, kind, is_prefill_only):
            raise InvalidValueError(
                f"every={policy.every} evicts while decoding, but {title(policy, kind)} can judge "
                "a whole prompt only. Leave every=None, or use another part."
            )


def _check_parts(policy: Policy) -> None:
    parts = {kind: getattr(policy, kind) for kind in KINDS}
    for kind, part in parts.items():
        with at_work(policy, kind):
            if isinstance(part, ChecksParts):
                part.check_parts(parts)


def _says(policy: Policy, kind: str, demand: Callable[[object], bool]) -> bool:
    """Ask a part what it demands, and name it if it fails to say."""
    with at_work(policy, kind):
        return bool(demand(getattr(policy, kind)))
