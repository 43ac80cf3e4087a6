"""How much sooner the first token comes when a prompt is read by a pattern: JSON lines.

python -m benchmarks.sparse_prefill --tokens 4096 8192
python -m benchmarks.sparse_prefill --device cuda --dtype bfloat16 --size llama-3.1-8b \
    --tokens 32768 65536 131072

A Llama with random weights reads random tokens with an evicting cache, densely and by a pattern in
turns; so does the attention of one layer alone. `attention_share` is f, what attention takes of the
dense prefill, and `density` is rho, the share of query-key pairs that the pattern looks at, both
measured: no pattern can be faster than 1 / (1 - f + f rho) if a pair costs what it costs densely.
A pattern whose attention is wrong, or does not compile, gets no speed.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor
from transformers import PreTrainedModel

import kvpolicy
from benchmarks.rows import Row, machine, versions, write
from benchmarks.sparse_inputs import SIZES, Inputs, inputs_of, random_model
from kvpolicy.errors import PrefillFallbackWarning
from kvpolicy.named import resolved
from kvpolicy.prefill import PrefillPattern
from kvpolicy.prefill.blocks import density

ON_A_CPU = (
    '{"name": "ashape", "sinks": 128, "local": 512}',
    '{"name": "verticalslash", "columns": 256, "diagonals": 256}',
)
"""Patterns for prompts of which those for long ones would leave nothing out."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.03, torch.float16: 0.01}
"""Largest error, by the largest value; half precision rounds the weights to 8 or 11 bits."""


@attrs.frozen(kw_only=True)
class Plan:
    """How to measure, and what evicts meanwhile."""

    recipe: str = "snapkv"
    budget: int = 1024
    repeats: int = 3
    clock: str = attrs.field(
        default="perf_counter", validator=attrs.validators.in_(["perf_counter", "process_time"])
    )
    """What "process_time" counts is for one thread on a busy machine."""

    def seconds_of(self, call: Callable[[], object]) -> float:
        """How long one call takes, until the device is done."""
        wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
        clock = getattr(time, self.clock)
        wait()
        started = clock()
        call()
        wait()
        return clock() - started

    def fastest(self, calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
        """Return each call's fastest of several runs in turns: slower ones measure the machine."""
        rounds = [
            {name: self.seconds_of(call) for name, call in calls.items()}
            for _ in range(self.repeats)
        ]
        return {name: min(each[name] for each in rounds) for name in calls}


def first_token(model: PreTrainedModel, ids: Tensor, policy: Any, pattern: Any) -> Tensor:
    """Read a prompt and give the logits of the token after it."""
    with policy.cache(model, prefill=pattern) as cache:
        logits: Tensor = model(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits
    return logits


def measure(model: PreTrainedModel, tokens: int, prefill: str, plan: Plan) -> Iterator[Row]:
    """Measure one pattern at one length: the whole prefill, and one layer's attention."""
    given = json.loads(prefill) if prefill.startswith("{") else {"name": prefill}
    device, dtype = model.device.type, model.dtype
    draw = torch.Generator(model.device).manual_seed(tokens)
    size = model.config.vocab_size
    ids = torch.randint(3, size, (1, tokens), generator=draw, device=model.device)
    inputs = inputs_of(model, ids)
    settings: dict[str, Any] = attrs.asdict(plan) | {"pattern": given}

    def row(name: str, **more: Any) -> Row:
        return Row(
            benchmark="sparse_prefill",
            name=name,
            variant=given["name"],
            unit="ratio",
            against="dense",
            device=torch.cuda.get_device_name() if device == "cuda" else "cpu",
            machine=machine(),
            dtype=str(dtype).removeprefix("torch."),
            shape=_shape(model) | {"L": tokens},
            repeats=plan.repeats,
            versions=versions(),
            **more,
        )

    with warnings.catch_warnings():
        warnings.simplefilter("error", PrefillFallbackWarning)
        try:
            pattern = resolved("prefill_pattern", given).part
            settings |= {"pattern": given | attrs.asdict(pattern)}
            failure = _failure(inputs, pattern, tokens)
        except PrefillFallbackWarning as warning:
            failure = f"red: {warning}"
        if failure is None:
            figures = _figures(model, ids, inputs, pattern, plan)
    if failure is not None:
        yield row("prefill", value=None, failure=failure, settings=settings)
        return
    for name in ("prefill", "attention"):
        yield row(
            name,
            value=figures[name].pop("speedup"),
            min_seconds=figures[name]["sparse_seconds"],
            settings=settings | figures[name],
        )


def _shape(model: PreTrainedModel) -> dict[str, int]:
    config = model.config
    return {
        "B": 1,
        "H": config.num_attention_heads,
        "N": config.num_key_value_heads,
        "D": config.hidden_size // config.num_attention_heads,
        "layers": config.num_hidden_layers,
    }


def _failure(inputs: Inputs, pattern: PrefillPattern, tokens: int) -> str | None:
    if tokens <= pattern.dense_up_to:
        return f"the pattern leaves nothing out of up to {pattern.dense_up_to} tokens"
    error = inputs.error(pattern)
    if error > TOLERANCE[inputs.queries.dtype]:
        return f"red: attention differs from its reference by {error:.2g}"
    return None


def _figures(
    model: PreTrainedModel,
    ids: Tensor,
    inputs: Inputs,
    pattern: PrefillPattern,
    plan: Plan,
) -> dict[str, dict[str, float]]:
    policy = kvpolicy.recipe(plan.recipe, budget=plan.budget)
    calls = {
        "dense prefill": lambda: first_token(model, ids, policy, None),
        "sparse prefill": lambda: first_token(model, ids, policy, pattern),
        "dense attention": inputs.dense,
        "sparse attention": lambda: inputs.sparse(pattern),
        "choice": lambda: inputs.chosen(pattern),
    }
    compiling = plan.seconds_of(calls["sparse prefill"])
    for call in calls.values():
        call()
    seconds = plan.fastest(calls)
    share = model.config.num_hidden_layers * seconds["dense attention"] / seconds["dense prefill"]
    with policy.cache(model, prefill=pattern) as cache:
        model(input_ids=ids, past_key_values=cache, logits_to_keep=1)
        rho = cache.report().density or 1.0
    alone = density(inputs.chosen(pattern), [ids.shape[1]], pattern.block).item()
    return {
        "prefill": _speedup(seconds, "prefill", 1 / (1 - share + share * rho), rho)
        | {"attention_share": share, "first_call_seconds": compiling},
        "attention": _speedup(seconds, "attention", 1 / alone, alone)
        | {"choice_seconds": seconds["choice"]},
    }


def _speedup(seconds: Mapping[str, float], what: str, bound: float, rho: float) -> dict[str, float]:
    dense, sparse = seconds[f"dense {what}"], seconds[f"sparse {what}"]
    return {
        "speedup": dense / sparse,
        "bound": bound,
        "share_of_bound": dense / sparse / bound,
        "density": rho,
        "dense_seconds": dense,
        "sparse_seconds": sparse,
    }


def table(rows: list[Row]) -> str:
    """Return the rows as a table of Markdown."""
    head = (
        "| tokens | pattern | what | density | attention's share | dense, s | sparse, s "
        "| faster | bound | of bound |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    return "\n".join([head, *map(_line, rows)])


def _line(row: Row) -> str:
    first = f"| {row.shape['L']:,} | {row.variant} | {row.name}"
    if row.value is None:
        return f"{first} | {row.failure} | | | | | | |"
    said = row.settings
    share = f"{said['attention_share']:.0%}" if "attention_share" in said else ""
    return (
        f"{first} | {said['density']:.1%} | {share} | {said['dense_seconds']:.3f} "
        f"| {said['sparse_seconds']:.3f} | {row.value:.2f}x | {said['bound']:.2f}x "
        f"| {said['share_of_bound']:.0%} |"
    ).replace("%", " %")


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sparse_prefill",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 8192])
    parser.add_argument("--prefill", nargs="+", help="names, or JSON objects with a name")
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    for field in attrs.fields(Plan):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--write", type=Path, help="append the rows to this file")
    parser.add_argument("--table", action="store_true", help="print Markdown instead of JSON")
    options = parser.parse_args(arguments)
    if options.prefill is None:
        on_a_gpu = options.device == "cuda"
        options.prefill = ["ashape", "verticalslash"] if on_a_gpu else list(ON_A_CPU)
    return options


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    options = parsed(arguments)
    torch.set_num_threads(options.threads)
    dtype = getattr(torch, options.dtype)
    model = random_model(options.size, options.layers, dtype, options.device)
    plan = Plan(**{field.name: getattr(options, field.name) for field in attrs.fields(Plan)})
    rows: list[Row] = []
    for tokens in options.tokens:
        for prefill in options.prefill:
            for row in measure(model, tokens, prefill, plan):
                rows.append(row)
                if not options.table:
                    print(row.to_json(), flush=True)
    if options.table:
        print(table(rows))
    if options.write:
        write(options.write, rows)


if __name__ == "__main__":
    main()
