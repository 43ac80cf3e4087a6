"""Usages that other libraries and other ways of asking bring: adapters, blocks, questions."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from kvpolicy import Policy
from kvpolicy.errors import UnsupportedModelError
from kvpolicy.exactness.usages.inputs import (
    PROMPT,
    changed,
    difference,
    generate,
    read,
    replayed,
    tokens,
)
from kvpolicy.huggingface.cache import PolicyCache
from kvpolicy.huggingface.cache_argument import handed


def adapters_of_peft(model: PreTrainedModel, policy: Policy) -> float:
    """A LoRA adapter of PEFT on every linear layer, and a second turn by generate."""
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UnsupportedModelError(
            "PEFT is not installed. Install it: pip install peft."
        ) from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # Weights that are not zero at the beginning, so that the adapter changes the logits.
        turned = any(isinstance(module, Conv1D) for module in model.modules())
        lora = partial(
            LoraConfig, r=2, lora_alpha=1, init_lora_weights=False, fan_in_fan_out=turned
        )
        linears = _linears(model)
        try:
            adapted: Any = get_peft_model(deepcopy(model), lora(target_modules=linears))
        except ValueError:
            # PEFT adapts no layer called out_proj in models with a Mamba state.
            others = [name for name in linears if not name.endswith("out_proj")]
            adapted = get_peft_model(deepcopy(model), lora(target_modules=others))
    adapted.eval()
    inside = adapted.get_base_model()

    def turns(cache: PolicyCache) -> None:
        answered = adapted.generate(
            input_ids=tokens(1),
            attention_mask=torch.ones_like(tokens(1)),
            **handed(cache, to=adapted.generate),
            max_new_tokens=3,
            do_sample=False,
            pad_token_id=0,
        )
        generate(inside, cache, torch.cat([answered, tokens(2, 7)], 1), max_new_tokens=2)

    return replayed(inside, policy, turns)


def _linears(model: PreTrainedModel) -> list[str]:
    """Return the names of linear layers, those of GPT-2 included.

    Routers are more, and return more than a product.
    """
    head = model.get_output_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if type(module) in (nn.Linear, Conv1D) and module is not head
    ]


def policy_applied(model: Any, policy: Policy) -> float:
    """A generate that is given no cache, in `policy.applied`, against one with a cache."""
    options = {"output_logits": True, "return_dict_in_generate": True, "max_new_tokens": 4}
    expected: Any = generate(model, policy.cache(model), tokens(1), **options)
    with policy.applied(model):
        found: Any = generate(model, None, tokens(1), **options)
    return difference(found.logits, expected.logits)


def padded_questions_to_one_context(model: Any, policy: Policy) -> float:
    """Two left-padded questions to one evicted context, in a batch, and a decoded token."""

    def turns(cache: PolicyCache) -> None:
        read(model, cache, (PROMPT,))
        cache.batch_repeat_interleave(2)
        mask = torch.ones((2, PROMPT + 9), dtype=torch.long)
        mask[0, PROMPT : PROMPT + 4] = 0
        ids = tokens(2, 9, 2) * mask[:, PROMPT:]
        longer = torch.cat([mask, mask.new_ones((2, 1))], 1)
        for new, whole in ((ids, mask), (tokens(3, 1, 2), longer)):
            positions = (whole.cumsum(1) - 1).clamp(min=0)[:, -new.shape[1] :]
            model(
                input_ids=new,
                attention_mask=whole,
                position_ids=positions,
                **handed(cache, to=model),
            )

    return replayed(model, policy, turns)


def a_budget_for_each_turn(model: PreTrainedModel, policy: Policy) -> float:
    """Three turns under the same policy with `per_turn`, with decoded tokens between them."""
    by_turn = changed(policy, per_turn=True)
    return replayed(model, by_turn, lambda cache: read(model, cache, (PROMPT, 1, 40, 1, 33, 1)))
