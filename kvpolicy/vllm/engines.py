"""Which engines a policy can run in, and why the others are refused before they start."""

from __future__ import annotations

from typing import Any

import vllm

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.pipeline.capabilities import needs_of
from kvpolicy.pipeline.pipeline import Pipeline
from kvpolicy.vllm.asked import UNTESTED, Asked

TESTED = "0.32"
"""The minor version of vLLM that `make vllm` tests."""

WORKERS = {
    "vllm.v1.worker.cpu_worker.CPUWorker": "kvpolicy.vllm.workers.cpu.EvictingWorker",
    "vllm.v1.worker.gpu_worker.Worker": "kvpolicy.vllm.workers.gpu.EvictingWorker",
}
"""The worker that evicts, by the worker that vLLM chose."""


def check_version(*, untested: bool, version: str | None = None) -> None:
    """Raise UnsupportedModelError for a version of vLLM that was not tested.

    The seams that eviction uses are not part of vLLM's stable interface.
    """
    version = vllm.__version__ if version is None else version
    if not untested and version.split(".")[:2] != TESTED.split("."):
        raise UnsupportedModelError(
            f"this kvpolicy was tested with vLLM {TESTED}, but vLLM {version} is installed. "
            f'Install vLLM {TESTED}, or add "{UNTESTED}": true to try it.'
        )


def check_engine(asked: Asked, config: Any) -> None:
    """Raise UnsupportedModelError for an engine in which the policy would not be exact.

    `config` is a VllmConfig.
    """
    check_version(untested=asked.untested)
    _check_uses(config)
    _check_model(config)
    _check_budget(asked.policy, config)
    _check_parts(asked.policy, config)


def _refuse(what: str, remedy: str) -> None:
    raise UnsupportedModelError(f"kvpolicy does not evict with {what}. {remedy}")


def _check_uses(config: Any) -> None:
    """Refuse ways of running an engine."""
    parallel, cache = config.parallel_config, config.cache_config
    if config.speculative_config is not None:
        _refuse(
            "speculative decoding: a rejected draft would have to bring evicted tokens back",
            "Leave out --speculative-config.",
        )
    if cache.enable_prefix_caching:
        _refuse(
            "prefix caching: a shared block would have to stay as it was",
            "Leave out --enable-prefix-caching.",
        )
    if config.kv_transfer_config is not None:
        _refuse("a KV connector, which moves whole blocks", "Leave out --kv-transfer-config.")
    if cache.cache_dtype not in ("auto", "float16", "bfloat16", "float32"):
        _refuse(
            f"a cache of {cache.cache_dtype}: rows that move would be rounded twice",
            "Leave out --kv-cache-dtype.",
        )
    if cache.kv_sharing_fast_prefill:
        _refuse("--kv-sharing-fast-prefill", "Leave it out.")
    if parallel.use_ubatching:
        _refuse("microbatches", "Leave out --enable-dbo and --ubatch-size.")
    for name in ("pipeline", "decode_context", "prefill_context"):
        if (size := getattr(parallel, f"{name}_parallel_size", 1)) > 1:
            flag = f"--{name.replace('_', '-')}-parallel-size"
            _refuse(f"{flag} {size}, which was not tested", f"Leave out {flag}.")


def _check_model(config: Any) -> None:
    """Refuse models before their weights are loaded, where the configuration says enough."""
    model = config.model_config
    name = _name(model)
    if model.runner_type != "generate" or model.is_encoder_decoder:
        raise UnsupportedModelError(
            f"{name} is no decoder that generates, so there is no prompt to evict. Leave out "
            "kvpolicy for it."
        )
    if model.use_mla:
        raise UnsupportedModelError(
            f"{name} has latent attention: it caches what keys are made of, all heads at once, so "
            "there is no key that a head could keep."
        )
    kinds = set(getattr(model.hf_text_config, "layer_types", None) or ())
    if model.get_sliding_window() is not None or len(kinds - {"full_attention"}):
        raise UnsupportedModelError(
            f"{name} has layers without full attention (sliding windows, say), which keep other "
            "tokens than the policy. In transformers, policy.cache(model) serves it."
        )
    if model.is_mm_prefix_lm:
        raise UnsupportedModelError(
            f"the attention of {name} to images is not causal, so it cannot be replayed."
        )
    heads, ranks = model.get_total_num_kv_heads(), config.parallel_config.tensor_parallel_size
    if heads % ranks:
        raise UnsupportedModelError(
            f"{heads} key/value heads of {name} cannot be shared out among {ranks} processes: "
            "some heads would be held twice. Lower --tensor-parallel-size."
        )


def check_block(policy: Pipeline, block: int) -> None:
    """Raise UnsupportedModelError for a budget that is smaller than one block."""
    if isinstance(policy.budget, int) and policy.budget < block:
        raise UnsupportedModelError(
            f"budget {policy.budget} is smaller than a block of {block} tokens, the least that "
            f"vLLM gives back. Raise the budget to {block} or more, or lower --block-size."
        )


def _check_budget(policy: Pipeline, config: Any) -> None:
    # Some platforms choose the size of a block later; the worker checks it again.
    if (block := config.cache_config.block_size) is not None:
        check_block(policy, block)


def _check_parts(policy: Pipeline, config: Any) -> None:
    """Refuse parts that need what this engine changes while it runs."""
    changes = {
        "output_weight": (
            ("LoRA adapters", "--enable-lora", config.lora_config is not None),
            ("new weights", "--weight-transfer-config", config.weight_transfer_config is not None),
        ),
        "rotary": (("the places of images", "images", config.model_config.uses_mrope),),
    }
    for kind, part in policy.parts.items():
        for need in needs_of(part):
            for what, flag, given in changes.get(need, ()):
                if given:
                    raise UnsupportedModelError(
                        f"{policy.titles[kind]} computes with the {need.replace('_', ' ')} of each "
                        f"layer, which {what} change. Do without {flag}, or use another scorer, "
                        "such as 'snapkv'."
                    )


def _name(model: Any) -> str:
    return str(model.architecture)
