"""The form in which a layer keeps its contents between two forwards."""

from kvpolicy.cache.storage.protocol import Storage, Stored

__all__ = ["Storage", "Stored"]
