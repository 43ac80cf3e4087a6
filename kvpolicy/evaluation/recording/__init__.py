"""What a full cache and its attention do while a model reads what comes after a prompt."""

from kvpolicy.evaluation.recording.record import Future, LayerRecord, Recording, record

__all__ = ["Future", "LayerRecord", "Recording", "record"]
