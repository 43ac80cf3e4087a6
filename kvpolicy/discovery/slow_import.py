"""Says which plugin is being imported where that takes long.

An import cannot be interrupted safely, so nothing is: whoever waits learns for what, and how to do
without.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SECONDS = 20.0
"""How long an import may take before something is said."""

_log = logging.getLogger("kvpolicy")


@contextmanager
def patient_with(plugin: str, hint: str) -> Iterator[None]:
    """Log a warning, once, if the block takes longer than `SECONDS`."""
    # Not a warning of Python's: where those are errors, it would end the thread unseen.
    timer = threading.Timer(
        SECONDS, _log.warning, ("plugin %s has been importing for %g s. %s", plugin, SECONDS, hint)
    )
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
