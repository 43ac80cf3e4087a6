"""Whether a cache may go on: not after a change that was begun and not completed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kvpolicy.errors import CacheStateError
from kvpolicy.pipeline.doubts import Doubts


class Guard:
    """Remembers that a change of the cache failed; what follows is refused until a reset.

    >>> guard = Guard()
    >>> guard.check()
    """

    def __init__(self) -> None:
        """Start with nothing wrong."""
        self.failure: str | None = None
        self.doubts = Doubts()

    def failed(self, error: BaseException) -> None:
        """Remember an exception that ended a change early."""
        self.failure = f"{type(error).__name__}: {error}"

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Remember an exception that leaves this block."""
        try:
            yield
        except BaseException as error:
            self.failed(error)
            raise

    def clear(self) -> None:
        """Forget what went wrong, because the cache was emptied."""
        self.failure = None
        self.doubts.clear()

    def settle(self, *, patient: bool = False) -> None:
        """Read what earlier forwards left in doubt, and raise the error of what was wrong."""
        with self.changing():
            self.doubts.settle(patient=patient)

    def check(self, *, patient: bool = False) -> None:
        """Raise CacheStateError if an earlier change did not complete; then settle doubts."""
        if self.failure is not None:
            raise CacheStateError(
                f"an earlier forward or change of this cache failed ({self.failure}), so its "
                "layers may hold different tokens. Call cache.reset() and start over; the model is "
                "unchanged."
            )
        self.settle(patient=patient)
