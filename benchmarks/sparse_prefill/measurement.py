"""One pattern at one length, beside dense attention: the whole prefill, and one layer alone."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor
from transformers import PreTrainedModel

import kvpolicy
from benchmarks.rows import Row, machine, versions
from benchmarks.sparse_prefill.inputs import Inputs, inputs_of
from benchmarks.timing import Timing, interleaved, timed
from kvpolicy.errors import PrefillFallbackWarning
from kvpolicy.huggingface.cache_argument import handed
from kvpolicy.named import resolved
from kvpolicy.prefill import PrefillPattern
from kvpolicy.prefill.blocks import density

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.03, torch.float16: 0.01}
"""The largest error, by the largest output. Half precision rounds weights to 8 or 11 bits."""


@attrs.frozen(kw_only=True)
class Plan:
    """How to measure, and what evicts meanwhile."""

    recipe: str = "snapkv"
    budget: int = 1024
    repeats: int = 3
    clock: str = attrs.field(
        default="perf_counter", validator=attrs.validators.in_(["perf_counter", "process_time"])
    )
    """"process_time" is for one thread on a busy machine."""


def measure(model: PreTrainedModel, tokens: int, prefill: str, plan: Plan) -> Iterator[Row]:
    """Yield a row for the prefill and one for attention; or one with the failure."""
    given = json.loads(prefill) if prefill.startswith("{") else {"name": prefill}
    draw = torch.Generator(model.device).manual_seed(tokens)
    size = model.config.vocab_size
    ids = torch.randint(3, size, (1, tokens), generator=draw, device=model.device)
    inputs = inputs_of(model, ids)
    settings: dict[str, Any] = attrs.asdict(plan) | {"pattern": given}
    on_a_gpu = model.device.type == "cuda"

    def row(name: str, **more: Any) -> Row:
        return Row(
            benchmark="sparse_prefill",
            name=name,
            variant=given["name"],
            unit="ratio",
            against="dense",
            device=torch.cuda.get_device_name() if on_a_gpu else "cpu",
            machine=machine(),
            dtype=str(model.dtype).removeprefix("torch."),
            shape=_shape(model) | {"L": tokens},
            repeats=plan.repeats,
            versions=versions(),
            **more,
        )

    with warnings.catch_warnings():
        warnings.simplefilter("error", PrefillFallbackWarning)
        try:
            pattern = resolved("prefill_pattern", given).part
            settings |= {"pattern": given | _options(pattern)}
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


def _options(pattern: Any) -> dict[str, Any]:
    """Return the options of a pattern that is an attrs class, as ours are."""
    return attrs.asdict(pattern)


def first_token(model: PreTrainedModel, ids: Tensor, policy: Any, pattern: Any) -> Tensor:
    """Read a prompt, and return the logits of the token after it."""
    with policy.cache(model, prefill=pattern) as cache:
        logits: Tensor = model(input_ids=ids, **handed(cache, to=model), logits_to_keep=1).logits
    return logits


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
    model: PreTrainedModel, ids: Tensor, inputs: Inputs, pattern: PrefillPattern, plan: Plan
) -> dict[str, dict[str, float]]:
    policy = kvpolicy.recipe(plan.recipe, budget=plan.budget)
    calls = {
        "dense prefill": lambda: first_token(model, ids, policy, None),
        "sparse prefill": lambda: first_token(model, ids, policy, pattern),
        "dense attention": inputs.dense,
        "sparse attention": lambda: inputs.sparse(pattern),
        "choice": lambda: inputs.chosen(pattern),
    }
    clock = getattr(time, plan.clock)
    compiling, _ = timed(calls["sparse prefill"], model.device, wall=True, clock=clock)
    timings = interleaved(
        calls, model.device, repeats=plan.repeats, warmup=1, limit=math.inf, wall=True, clock=clock
    )
    seconds = {name: _fastest(timing) for name, timing in timings.items()}
    share = model.config.num_hidden_layers * seconds["dense attention"] / seconds["dense prefill"]
    with policy.cache(model, prefill=pattern) as cache:
        model(input_ids=ids, **handed(cache, to=model), logits_to_keep=1)
        rho = cache.report().density or 1.0
    alone = density(inputs.chosen(pattern), [ids.shape[1]], pattern.block).item()
    return {
        "prefill": _speedup(seconds, "prefill", 1 / (1 - share + share * rho), rho)
        | {"attention_share": share, "first_call_seconds": compiling},
        "attention": _speedup(seconds, "attention", 1 / alone, alone)
        | {"choice_seconds": seconds["choice"]},
    }


def _fastest(timing: Timing | str) -> float:
    if isinstance(timing, str):
        raise RuntimeError(timing)
    return timing.minimum


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
