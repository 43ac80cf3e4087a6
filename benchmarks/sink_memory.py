"""Memory of a prompt of a tiny gpt-oss, with eager attention and with kvpolicy.fused_sinks.

    python -m benchmarks.sink_memory [--lengths 4096,8192,16384]

Each prompt runs in a process of its own, with snapkv. The model has two layers of two heads. One of
the layers has a sliding window.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

import kvpolicy
from benchmarks.memory import extra_mib, in_a_fresh_process
from benchmarks.timing import MIB
from kvpolicy.huggingface.cache_argument import handed


def measured(length: int, fused: bool) -> tuple[float, float]:
    """Return the memory of a prompt at its peak, in MiB more than before, and its seconds."""
    from transformers import GptOssConfig, GptOssForCausalLM

    config = GptOssConfig(
        num_hidden_layers=2,
        num_local_experts=2,
        num_experts_per_tok=1,
        hidden_size=64,
        intermediate_size=64,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        vocab_size=256,
        max_position_embeddings=2**17,
    )
    model = GptOssForCausalLM._from_config(config, attn_implementation="eager").eval()
    prompt = torch.arange(length)[None] % 256
    context = kvpolicy.fused_sinks(model) if fused else nullcontext()
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
    table = Table("tokens", "eager, MiB", "fused, MiB", "eager, s", "fused, s", "L x L floats, MiB")
    for length in map(int, lengths.split(",")):
        (eager, slow), (fused, fast) = (
            in_a_fresh_process(measured, length, each) for each in (False, True)
        )
        square = length**2 * 4 / MIB
        figures = (eager, fused, slow, fast, square)
        table.add_row(f"{length:,}", *(f"{figure:,.1f}" for figure in figures))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
