"""vLLM's worker on a CPU, with layers that evict."""

from __future__ import annotations

from vllm.v1.worker.cpu_worker import CPUWorker

from kvpolicy.vllm.workers.evicting import Evicting


class EvictingWorker(Evicting, CPUWorker):
    """A CPU worker whose attention layers evict."""
