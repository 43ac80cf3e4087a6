"""What a promise is: a statement about every component of a kind, tried on drawn examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import attrs
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

T = TypeVar("T")


class Draw(Protocol):
    """Draws an example from a Hypothesis strategy."""

    def __call__(self, strategy: st.SearchStrategy[T], label: Any = None) -> T:
        """Return one example."""
        ...


@attrs.frozen
class Promise:
    """One promise of a kind of component; call it with a component to hold it to the promise."""

    kind: str
    statement: Callable[[Any, Draw], None]
    examples: int = 50

    @property
    def name(self) -> str:
        """The promise in a few words."""
        return self.statement.__name__

    def quickened(self, share: float) -> Promise:
        """Return the promise, to be tried on a share of its examples."""
        return attrs.evolve(self, examples=max(1, round(self.examples * share)))

    def __call__(self, component: object) -> None:
        """Try the promise on examples; raises AssertionError with the smallest that breaks it."""
        # The same examples at every run: a plugin's tests must not come and go.
        self.tried(
            component,
            settings(
                max_examples=self.examples,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.explicit, Phase.generate, Phase.shrink],
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
            ),
        )

    def tried(self, component: object, how: settings) -> int:
        """Try the promise on examples that are chosen as `how` says; return how many there were."""
        ran = 0

        @how
        @given(st.data())
        def example(data: st.DataObject) -> None:
            nonlocal ran
            self.statement(component, data.draw)
            ran += 1

        example()
        return ran


def promise(kind: str, *, examples: int = 50) -> Callable[[Callable[[Any, Draw], None]], Promise]:
    """Turn a function of a component and `draw` into a promise."""
    return lambda statement: Promise(kind, statement, examples)
