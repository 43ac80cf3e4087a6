"""How layers keep what they hold between two forwards: as bytes, or in the host's memory."""

from kvpolicy.huggingface.storing.naming import STORAGES, StorageOption, described, storage_of
from kvpolicy.huggingface.storing.offloaded import Offloaded, OffloadedContents
from kvpolicy.huggingface.storing.protocol import Storage, Stored
from kvpolicy.huggingface.storing.quantized import Quantized, QuantizedContents, Recent

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
