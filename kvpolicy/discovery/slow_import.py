"""Warns if the import of a plugin takes long, and names the plugin.

An import cannot be interrupted safely, so it goes on. The warning says how to skip the plugin.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SECONDS = 20.0
"""How long an import may take before the warning, in seconds."""

_log = logging.getLogger("kvpolicy")


@contextmanager
def patient_with(plugin: str, hint: str) -> Iterator[None]:
    """Log a warning, once, if the block takes longer than `SECONDS`."""
    # A warning of Python's may be turned into an error, which would end this thread unseen.
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
