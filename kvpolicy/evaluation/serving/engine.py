"""A vLLM engine in this process: requests that arrive at chosen steps, and what came of them."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
from jaxtyping import Int
from torch import Tensor

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
}
"""The engine runs in this process, tells nobody of it, and takes little memory."""

BLOCK = 32
OPTIONS: Mapping[str, Any] = {
    "dtype": "float32",
    "skip_tokenizer_init": True,
    "enforce_eager": True,
    "block_size": BLOCK,
    "max_model_len": 1024,
    "max_num_seqs": 8,
    "num_gpu_blocks_override": 400,
    "disable_log_stats": True,
}


@attrs.frozen(kw_only=True, eq=False)
class Arrival:
    """A prompt that arrives before step number `step`, to be answered with `tokens` tokens."""

    prompt: Sequence[int]
    step: int = 0
    tokens: int = 12


@attrs.define(eq=False)
class Served:
    """What came of one request. `kept` are its positions, by layer; empty where all were kept."""

    prompt: Sequence[int]
    tokens: list[int] = attrs.field(factory=list)
    logprobs: list[float] = attrs.field(factory=list)
    kept: list[dict[int, Int[Tensor, "N K"]]] = attrs.field(factory=list)
    """For each time that the prompt was read; a preempted request reads it again."""

    preemptions: int = 0


@contextmanager
def engine(folder: Path, policy: Mapping[str, Any] | None, **options: Any) -> Iterator[Any]:
    """Start an engine for a model, and end it when the block is left."""
    os.environ.update(ENVIRONMENT)
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    asked = {} if policy is None else {"additional_config": {"kvpolicy": dict(policy)}}
    llm = LLM(str(folder), **{**OPTIONS, **options, **asked})
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


def worker_of(llm: Any) -> Any:
    """Return the worker of an engine in this process."""
    return core_of(llm).model_executor.driver_worker.worker


def core_of(llm: Any) -> Any:
    """Return the core of an engine in this process, which has the scheduler."""
    return llm.llm_engine.engine_core.engine_core


def serve(llm: Any, arrivals: Sequence[Arrival]) -> list[Served]:
    """Let an engine serve requests greedily, step by step, until all are answered."""
    from vllm import SamplingParams

    found = {str(at): Served(each.prompt) for at, each in enumerate(arrivals)}
    host = getattr(worker_of(llm), "kvpolicy_host", None)
    if host is not None:
        host.listeners.append(lambda *told: _note(found, *told))
    waiting, step = dict(enumerate(arrivals)), 0
    while waiting or llm.llm_engine.has_unfinished_requests():
        for at in [at for at, each in waiting.items() if each.step <= step]:
            each = waiting.pop(at)
            params = SamplingParams(
                temperature=0,
                max_tokens=each.tokens,
                ignore_eos=True,
                detokenize=False,
                logprobs=0,
            )
            llm.llm_engine.add_request(str(at), {"prompt_token_ids": list(each.prompt)}, params)
        for output in llm.llm_engine.step():
            if output.finished:
                _finish(found[output.request_id], output.outputs[0])
        for name, request in core_of(llm).scheduler.requests.items():
            found[_own_name(name)].preemptions = request.num_preemptions
        step += 1
    if host is not None:
        host.listeners.clear()
    return list(found.values())


def _note(found: Mapping[str, Served], request: str, layer: int, kept: Int[Tensor, "N K"]) -> None:
    served = found[_own_name(request)]
    if layer == 0:
        served.kept.append({})
    served.kept[-1][layer] = kept


def _own_name(request: str) -> str:
    # vLLM adds a random ending to the name of a request.
    return request.partition("-")[0]


def _finish(served: Served, answer: Any) -> None:
    served.tokens = list(answer.token_ids)
    served.logprobs = [next(iter(each.values())).logprob for each in answer.logprobs]
