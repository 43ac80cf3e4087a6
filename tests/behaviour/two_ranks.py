"""What the tests of tensor parallelism do, in one process as in each of two.

As a script it is both of the two: they read models from a folder, and leave there what they saw.
"""

import inspect
import os
import sys
from pathlib import Path
from typing import ClassVar

import attrs
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import is_accelerate_available

import kvpolicy
from kvpolicy.errors import KvpolicyError
from kvpolicy.exactness.usages import small_policy, tokens
from kvpolicy.exactness.usages.spans import SPANS, telling

WORLD = 2
MODELS = {
    "N=4": ("llama", {"num_attention_heads": 8, "num_key_value_heads": 4}),
    "N=2": ("llama", {"num_attention_heads": 4, "num_key_value_heads": 2}),
    "qwen3": ("qwen3", {}),
    # Its plan gathers the heads again: every process has them all, but not all of o_proj.
    "phi3": ("phi3", {}),
}
UNEVEN_SHARE = "N=1"
TURNS = (60, 1, 1, 11, 1)
REFUSED = ("kvzip", "kvzipplus")
"""Recipes that have the model repeat its prompts, which several processes are not asked for."""


@attrs.frozen
class ByNumberOfKeys:
    """An allocator that goes by what differs between processes, which it must not."""

    uneven: ClassVar[bool] = True

    def allocate(self, scores, observation, budget):
        share = int(observation.keys.double().abs().sum()) % 7
        return torch.full(scores.shape[:2], budget - share)


def policies():
    """Return what is compared, by name: a model, a policy, and the lengths of two rows."""
    even, unequal = (60, 60), (60, 41)
    found = {
        recipe.name: ("N=4", small_policy(recipe.name), even)
        for recipe in kvpolicy.installed("recipe")
        if recipe.name not in REFUSED
    }
    chosen = {
        "restkv": {},
        "snapkv": {"slot_positions": True},
        "tova": {},
        "adakv": {"every": 2},
        "defensivekv": {"every": 2},
        "layerdefensivekv": {"every": 3},
        "h2o": {},
        "pyramidkv": {"budget": 0.4},
        "streamingllm": {},
        "lacache": {},
    }
    for name, changes in chosen.items():
        found[f"{name}, padded"] = ("N=2", small_policy(name, **changes), unequal)
    joint = {"name": "jointrestkv", "window": 8}
    weighted = {"scorer": {"name": "tova", "value_weighted": True}}
    table = {"name": "headkv", "importance": [[1, 2, 3, 4], [4, 1, 1, 1]], "window": 8}
    merging = {"compactor": {"name": "lookm", "merge": "weighted"}}
    found |= {
        "joint errors": ("N=4", small_policy("restkv", scorer=joint), even),
        "errors before folding": (
            "N=2",
            small_policy("restkv", scorer={"name": "windowedrestkv", "window": 8}),
            even,
        ),
        "by value": ("N=4", small_policy("tova", **weighted), unequal),
        "table of heads": ("N=4", small_policy("snapkv", allocator=table), even),
        "merged across heads": ("N=4", small_policy("lookm", **merging), unequal),
        "drawn unevenly": ("N=4", small_policy("random", allocator="adakv", every=3), even),
        "normed keys": ("qwen3", small_policy("restkv", allocator="adakv"), unequal),
        "protected spans": (
            "N=4",
            telling(small_policy("adakv", every=3), spans=SPANS, protect=True),
            unequal,
        ),
        "a fair share of each span": (
            "N=4",
            telling(small_policy("layerdefensivekv"), spans=SPANS, divider="fair"),
            unequal,
        ),
        "layer by layer": (
            "N=4",
            small_policy("restkv", allocator={"name": "carried", "level": 0.2}, every=3),
            unequal,
        ),
        "heads in every process": ("phi3", small_policy("restkv", allocator="adakv"), unequal),
    }
    return found


def conversation(model, policy, lengths):
    """Read a prompt of two rows, decode, and read on; return logits and positions of each turn."""
    cache = policy.cache(model)
    mask = (torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]).long()
    logits, positions = [], []
    for turn, length in enumerate(TURNS):
        ids = tokens(turn, length, batch=len(lengths))
        mask = mask if turn == 0 else torch.cat([mask, torch.ones_like(ids)], 1)
        output = model(input_ids=ids, attention_mask=mask, past_key_values=cache)
        logits.append(output.logits[mask[:, -length:].bool()])
        positions.append(cache.positions)
    return logits, positions


def changed_on_the_way(model):
    """Take tokens back, go on with clones, reorder rows, and generate."""
    policy = small_policy("adakv", recent=6)
    cache = policy.cache(model)
    read = [model(input_ids=tokens(0, batch=2), past_key_values=cache).logits]
    read.append(model(input_ids=tokens(1, 5, batch=2), past_key_values=cache).logits)
    cache.crop(-3)
    twin = cache.clone()
    twin.batch_select_indices(torch.tensor([1, 0, 1]))
    read.append(model(input_ids=tokens(2, 9, batch=3), past_key_values=twin).logits)
    ids = tokens(3)
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        past_key_values=policy.cache(model),
        max_new_tokens=8,
        do_sample=False,
        pad_token_id=0,
    )
    return read, made, [*cache.positions, *twin.positions]


def refused(act):
    """Return the name of the error that `act` raises, and what it says."""
    try:
        act()
    except KvpolicyError as error:
        return type(error).__name__, str(error)
    return None


def crop_across_an_eviction(model):
    """Take back more than all heads keep."""
    cache = small_policy("random", recent=2).cache(model)
    model(input_ids=tokens(0), past_key_values=cache)
    cache.crop(-20)


def sharded_by_hand(path):
    """Load a model in every process, and give each some columns of one output projection."""
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    projection = model.model.layers[0].self_attn.o_proj
    mesh = init_device_mesh("cpu", (WORLD,))
    columns = distribute_tensor(projection.weight.detach(), mesh, [Shard(1)])
    projection.weight = torch.nn.Parameter(columns)
    return model


def refusals(models, folder):
    """Return what is refused, and how."""
    model = models["N=2"]
    cache = small_policy("snapkv").cache(model)
    model(input_ids=tokens(0), past_key_values=cache)
    unlike = small_policy("snapkv", allocator=ByNumberOfKeys()).cache(model)
    return {
        "save": refused(lambda: cache.save(folder / "cache.safetensors")),
        "load": refused(lambda: kvpolicy.load(folder / "saved.safetensors", model)),
        "allocator": refused(lambda: model(input_ids=tokens(0), past_key_values=unlike)),
        "heads": refused(lambda: small_policy("snapkv").cache(models[UNEVEN_SHARE])),
        "crop": refused(lambda: crop_across_an_eviction(model)),
        "by hand": refused(
            lambda: small_policy("snapkv").cache(sharded_by_hand(folder / "models" / "N=2"))
        ),
    }


@torch.no_grad()
def seen(models, names):
    """Return what a process sees of the conversations with these policies."""
    all_policies = policies()
    chosen = {name: all_policies[name] for name in names}
    found = {
        name: conversation(models[model], policy, lengths)
        for name, (model, policy, lengths) in chosen.items()
    }
    return {"conversations": found, "changes": changed_on_the_way(models["N=4"])}


def can_spread():
    """Say why the installed transformers cannot spread a model over processes; None if it can."""
    if is_accelerate_available() or hasattr(PreTrainedModel, "maybe_distribute_model"):
        return None
    return "this transformers spreads models only while loading them, which needs accelerate"


def spread(path):
    """Load a model, with a part of it in each process."""
    from transformers.distributed import DistributedConfig

    if "tp_plan" not in inspect.signature(DistributedConfig).parameters:
        return AutoModelForCausalLM.from_pretrained(path, tp_plan="auto")
    config = DistributedConfig(tp_plan="auto")
    if is_accelerate_available():
        return AutoModelForCausalLM.from_pretrained(path, distributed_config=config)
    # What from_pretrained does, but for loading: its check of device maps asks for accelerate.
    model = AutoModelForCausalLM.from_pretrained(path)
    config, _, mesh = model.prepare_distribute_model(config)
    return model.maybe_distribute_model(model, config, mesh)


def main(folder, names, rank):
    """Be one of the processes."""
    os.environ["RANK"] = str(rank)
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=WORLD
    )
    models = {path.name: spread(path).eval() for path in sorted((folder / "models").iterdir())}
    with torch.no_grad():
        found = seen(models, names) | {"refusals": refusals(models, folder)}
    torch.save(found, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    # The second process is a copy of the first: what takes longest, importing, is done once.
    second = os.fork()
    main(Path(sys.argv[1]), sys.argv[2:], rank=int(second == 0))
    if second:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(second, 0)[1]))
