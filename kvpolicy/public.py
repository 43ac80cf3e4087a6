"""What users call on models, caches and files. transformers is imported when one is called."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from kvpolicy.policy import Policy

if TYPE_CHECKING:
    import os

    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from kvpolicy.evaluation.evaluate import Evaluation
    from kvpolicy.huggingface.cache import PolicyCache


def chunked_mlp(
    model: PreTrainedModel | PeftModel, *, tokens: int = 4096
) -> AbstractContextManager[None]:
    """Run the MLPs of `model` over at most `tokens` tokens at once, until the block is left.

    Same numbers, up to the rounding of a matrix product that depends on its number of rows; the
    memory that a long prompt takes is then no longer the MLP's. The model is left as found.

    >>> import torch
    >>> from kvpolicy.testing import tiny_model
    >>> model, prompt = tiny_model(), torch.arange(100)[None]
    >>> expected = model(prompt).logits
    >>> with chunked_mlp(model, tokens=16):
    ...     torch.testing.assert_close(model(prompt).logits, expected)

    Raises UnsupportedModelError, with the reason, if it cannot be done exactly.
    """
    from kvpolicy.huggingface.model.mlp import chunked_mlp as in_chunks

    return in_chunks(model, tokens)


def evaluate(
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **options: Any,
) -> Evaluation:
    """Compare recipes at several budgets with the full cache, on your own data or on tasks.

    The options are those of `kvpolicy.evaluation.evaluate.evaluate`, which documents them:
    `recipes`, `budgets`, `data`, `tasks`, `metric`, `question`, `results`, `engine` and others.

    >>> from kvpolicy.evaluation import needle
    >>> model, tokenizer = needle.load()
    >>> data = [{"prompt": "password ada amber . question password ada", "answer": "amber"}]
    >>> print(evaluate(model, tokenizer, data=data, recipes=["streamingllm"], budgets=[8]))
    ## data
    <BLANKLINE>
    Metric: f1. Baseline: full.
    ...

    Raises DataError, ResultsError, InvalidValueError or UnknownComponentError for arguments, data
    and files that cannot be used; what a single run raises is an error in its row.
    """
    from kvpolicy.evaluation.evaluate import evaluate as run

    return run(model, tokenizer, **options)


def load(path: str | os.PathLike[str], model: PreTrainedModel | PeftModel) -> PolicyCache:
    """Read a cache that `save` wrote, to go on with the same model where it stood.

    All parameters, buffers and settings of the model must be those of the model that was saved
    with, active adapters included. All of them are read, so that a large model takes seconds.

    >>> import kvpolicy, tempfile, torch
    >>> from kvpolicy.testing import tiny_model
    >>> model = tiny_model()
    >>> cache = kvpolicy.recipe("snapkv", budget=40).cache(model)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = model(torch.arange(100)[None], past_key_values=cache)
    ...     save(cache, f"{folder}/context.safetensors")
    ...     load(f"{folder}/context.safetensors", model).get_seq_length()
    100

    Raises CacheFileError if the file is no such file, damaged, of another model, or of another
    release of the plugins that its policy is made of.
    """
    from kvpolicy.huggingface.file.loading import load as load_cache

    return load_cache(
        path, model, lambda policy, others: Policy.from_dict(policy).cache(model, **others)
    )


def save(cache: PolicyCache, path: str | os.PathLike[str]) -> None:
    """Write all that a cache holds to a safetensors file, for `load` with the same model.

    The file is written whole or not at all. A link is followed; what is no plain file is refused.

    Raises CacheStateError for a cache that failed, CacheFileError for a cache that no file can
    hold, InvalidComponentError for a policy with parts that no installed plugin offers.
    """
    cache.save(path)


def memory_efficient_attention(
    model: PreTrainedModel | PeftModel,
) -> AbstractContextManager[None]:
    """Let eager attention run without tensors of L x L for a prompt of L tokens, within the block.

    For models with a soft cap on their logits (Gemma 2) or learned sinks in the softmax (gpt-oss),
    which transformers gives eager attention only. Eager attention makes several tensors of L x L
    for each head. Here attention with sinks runs in PyTorch's fused kernels, and attention with a
    soft cap looks at a block of queries at a time. Same numbers, up to rounding. A mask that is not
    causal, and a static cache of transformers, still take eager attention. The model is left as
    found. Leave the block when no thread uses the model any more: a forward that began inside has
    no mask for eager attention.

    >>> import torch
    >>> from kvpolicy.testing import tiny_model
    >>> model, prompt = tiny_model("gemma2", attn_implementation="eager"), torch.arange(90)[None]
    >>> expected = model(prompt).logits
    >>> with memory_efficient_attention(model):
    ...     torch.testing.assert_close(model(prompt).logits, expected, atol=1e-4, rtol=1e-4)

    Raises UnsupportedModelError for a model that needs no eager attention, for one that does not
    use it, and for one whose layers read their mask, as those of DeepSeek V4 do.
    """
    from kvpolicy.huggingface.attention.memory_efficient import memory_efficient_attention as inside

    return inside(model)


fused_sinks = memory_efficient_attention
"""The name it had when it served learned sinks only."""


def restore(model: PreTrainedModel | PeftModel) -> None:
    """Undo what `policy.cache(model)` did to the model. Does nothing if there is nothing to undo.

    Open caches of the model are closed: they refuse to go on, because eviction cannot observe the
    model any more. Entering a cache by `with` opens it again.
    """
    from kvpolicy.huggingface.attention.attach import restore as restore_attention

    restore_attention(model)
