"""How layers keep what they hold between two forwards: as bytes, or in the host's memory."""

from kvpolicy.cache.storage.naming import STORAGES, StorageOption, described, storage_of
from kvpolicy.cache.storage.offloaded import Offloaded, OffloadedContents
from kvpolicy.cache.storage.protocol import Storage, Stored
from kvpolicy.cache.storage.quantized import Quantized, QuantizedContents, Recent

__all__ = [
    "STORAGES",
    "Offloaded",
    "OffloadedContents",
    "Quantized",
    "QuantizedContents",
    "Recent",
    "Storage",
    "StorageOption",
    "Stored",
    "described",
    "storage_of",
]
