"""Measures of one engine: blocks that a request holds, requests that run together, and time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import attrs

from kvpolicy.evaluation.serving.engine import core_of


def _params(tokens: int) -> Any:
    from vllm import SamplingParams

    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)


def _used(llm: Any) -> int:
    pool = core_of(llm).scheduler.kv_cache_manager.block_pool
    # vLLM keeps one block for itself.
    return int(pool.num_gpu_blocks - 1 - pool.get_num_free_blocks())


def blocks_after_prompt(llm: Any, prompt: Sequence[int]) -> int:
    """Return how many blocks a request holds when its second token is computed."""
    llm.llm_engine.add_request("0", {"prompt_token_ids": list(prompt)}, _params(3))
    llm.llm_engine.step()
    llm.llm_engine.step()
    used = _used(llm)
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
    return used


@attrs.frozen(kw_only=True)
class Backlog:
    """How a backlog was served: most requests at once, preemptions, steps and time."""

    most: int
    preemptions: int
    steps: int
    seconds: float
    cpu_seconds: float
    tokens: int

    @property
    def rate(self) -> float:
        """Answered tokens in a second of processor time."""
        return self.tokens / self.cpu_seconds


def serve_backlog(llm: Any, prompts: Sequence[Sequence[int]], tokens: int) -> Backlog:
    """Answer all prompts, which wait from the beginning."""
    scheduler, most, steps = core_of(llm).scheduler, 0, 0
    preemptions: dict[str, int] = {}
    began, cpu = time.perf_counter(), time.process_time()
    for at, prompt in enumerate(prompts):
        llm.llm_engine.add_request(str(at), {"prompt_token_ids": list(prompt)}, _params(tokens))
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
        steps += 1
        most = max(most, len(scheduler.running))
        for name, request in scheduler.requests.items():
            preemptions[name] = request.num_preemptions
    return Backlog(
        most=most,
        preemptions=sum(preemptions.values()),
        steps=steps,
        seconds=time.perf_counter() - began,
        cpu_seconds=time.process_time() - cpu,
        tokens=len(prompts) * tokens,
    )
