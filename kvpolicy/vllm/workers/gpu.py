"""vLLM's worker on a GPU, with layers that evict."""

from __future__ import annotations

from vllm.v1.worker.gpu_worker import Worker

from kvpolicy.vllm.workers.evicting import Evicting


class EvictingWorker(Evicting, Worker):
    """A GPU worker whose attention layers evict."""
