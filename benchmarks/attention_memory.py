"""Memory of a prompt of a tiny gpt-oss and a tiny Gemma 2, with and without tensors of L x L.

    python -m benchmarks.attention_memory [--lengths 4096,8192,16384]

Compares eager attention with kvpolicy.memory_efficient_attention. Each prompt runs in a process of
its own, with snapkv. The models have two layers of two heads. One of the layers has the sliding
window of the real model: 128 tokens in gpt-oss, 4,096 in Gemma 2.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from itertools import product
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

import kvpolicy
from benchmarks.memory import extra_mib, in_a_fresh_process
from benchmarks.timing import MIB
from kvpolicy.huggingface.cache_argument import handed

SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 256,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
    "max_position_embeddings": 2**17,
}
MODELS: dict[str, dict[str, Any]] = {
    "gpt_oss": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "gemma2": {},
}
"""What each model sets beyond `SIZES`."""


def measured(model_type: str, length: int, efficient: bool) -> tuple[float, float]:
    """Return the memory of a prompt at its peak, in MiB more than before, and its seconds."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(model_type, **SIZES | MODELS[model_type])
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    prompt = torch.arange(length)[None] % 256
    context = kvpolicy.memory_efficient_attention(model) if efficient else nullcontext()
    policy = kvpolicy.recipe("snapkv", budget=1024)
    with torch.no_grad(), context, policy.cache(model) as cache:
        model(prompt[:, :64], logits_to_keep=1)  # what a first call allocates
        started = time.perf_counter()
        peak = extra_mib(lambda: model(prompt, **handed(cache, to=model), logits_to_keep=1))
        return peak, time.perf_counter() - started


def main(
    lengths: Annotated[str, typer.Option(help="Tokens of the prompts.")] = "4096,8192,16384",
) -> None:
    """Print the peak memory of each prompt."""
    torch.set_num_threads(1)
    table = Table("model", "tokens")
    for of in ("eager", "efficient"):
        table.add_column(f"{of},\nMiB", justify="right")
        table.add_column(f"{of},\ns", justify="right")
    table.add_column("L x L floats,\nMiB", justify="right")
    for model_type, length in product(MODELS, map(int, lengths.split(","))):
        figures: list[float] = []
        for efficient in (False, True):
            figures += in_a_fresh_process(measured, model_type, length, efficient)
        figures.append(length**2 * 4 / MIB)
        table.add_row(model_type, f"{length:,}", *(f"{figure:,.1f}" for figure in figures))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
