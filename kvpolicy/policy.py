"""A policy, as users hold it: a pipeline that makes caches and goes to plain data and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs

from kvpolicy.arguments import check_static, policy_fields
from kvpolicy.expression import expression
from kvpolicy.named import Part, resolved, title_by_class
from kvpolicy.notebook import table
from kvpolicy.pipeline.pipeline import Pipeline
from kvpolicy.pipeline.title import Titles

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from kvpolicy.cache.eviction.spans import BatchSpans
    from kvpolicy.cache.storage.protocol import AnyStorage
    from kvpolicy.huggingface.applied import Applied
    from kvpolicy.huggingface.cache import PolicyCache
    from kvpolicy.prefill.pattern import PrefillPattern
    from kvpolicy.spans import GivenSpans
    from kvpolicy.stages.division import Divider


@attrs.frozen(kw_only=True)
class Policy(Pipeline):
    """Decides which cached positions of a layer survive, and writes the smaller cache.

    `kvpolicy.compose` and `kvpolicy.recipe` build one. It has five parts and these settings:

    - `budget`: how many positions each key/value head of a layer may keep, observation window
      included (an int), the share of the prompt that is kept (a float in (0, 1]), or the error that
      a layer may have (`kvpolicy.within`).
    - `group`: how the scores of the query heads that share a key/value head are reduced.
    - `group_order`: "before" reduces them before scores are smoothed over positions, "after" behind
      that. The default is "before" for a maximum, as SnapKV's authors do, and "after" otherwise.
    - `layer_group`: how the scores of layers that share keys and values are reduced, "mean" or
      "max", after `group` has reduced the heads of each. None: all their heads are one group.
    - `sinks`: how many of the first tokens are always kept.
    - `recent`: how many of the last tokens are always kept; a float is a share of the budget.
    - `every`: evict again after so many decoded tokens; None evicts only when a prompt ends.
    - `per_turn`: only the newest turn competes when a prompt ends: the tokens read since the prompt
      before it ended, the answer included. What earlier turns kept stays, and is not scored again.
      So `budget` is for each turn, a share is a share of the turn, and t turns hold at most t
      budgets. By default everything held competes, and the budget is for all turns together.
    - `slot_positions`: rotary positions follow a key's place in the cache, not in the text.

    Raises InvalidValueError for a value that a setting cannot take, for a budget that cannot hold
    what is always kept, and for parts that do not go together.
    """

    recipe: str | None = attrs.field(default=None, eq=False)
    """The recipe that it was made of, if `kvpolicy.recipe` made it."""

    def __repr__(self) -> str:
        """Return the Python expression that builds the policy.

        >>> import kvpolicy
        >>> kvpolicy.compose(scorer={"name": "snapkv", "window": 8}, budget=64)
        kvpolicy.compose(scorer={'name': 'snapkv', 'window': 8}, budget=64)
        """
        return expression(self, self.recipe)

    def _repr_html_(self) -> str:
        """Return a small table, for notebooks."""
        return table({"recipe": self.recipe or "-"} | self.parts | self.settings)

    def _complete_titles(self) -> Titles:
        found = Pipeline._complete_titles(self)
        return {
            kind: title if title.name is not None else title_by_class(kind, self.parts[kind])
            for kind, title in found.items()
        }

    def cache(
        self,
        model: PreTrainedModel | PeftModel,
        *,
        prefill: Part[PrefillPattern] | None = None,
        storage: Part[AnyStorage] | None = None,
        spans: GivenSpans | None = None,
        protect: Sequence[str] | bool = (),
        divider: Part[Divider] | None = None,
        static: bool = False,
        capacity: int | None = None,
    ) -> PolicyCache:
        """Return an empty cache for `generate`, `forward` or a pipeline of `model`.

        A PEFT model is served with the adapters that are active in each forward. `generate` of the
        PEFT model and of the model inside take the same cache.

        `prefill` names a pattern by which the first prompt is read sparsely; `storage` names the
        form in which layers keep their contents between two forwards. Each is a name, a mapping of
        `name` and options, or an object; `kvpolicy list` prints them. Scores are made of all keys,
        whatever the pattern leaves out.

        `spans` gives names to ranges of the first prompt, for all sequences of a batch or in a list
        for each: `{"system": (0, 24), "image": (40, 616)}`. A range counts real tokens from 0, and
        ends behind its last one. Spans that `protect` names (True: all) stay whole: every head of
        every layer keeps them. They are part of the budget. `kvpolicy.find_spans` finds images.
        `divider` names how the rest of the budget is divided among the spans before scores decide
        within each; the text outside of them is a span of its own. With "fair" the same share of
        each span is kept.

        With `static=True` the tokens behind a prompt go to buffers of fixed size, so that a decode
        step can be captured: `generate` compiles it by itself on a GPU, and `torch.compile(model,
        fullgraph=True)` takes it whole. `capacity` is how many tokens can be decoded behind each
        prompt, at most; more are refused. A policy with `every=1` needs none. A static cache has no
        storage, and serves models of full attention in one process.

        Raises UnsupportedModelError, with the reason, if the model cannot be served exactly, and
        InvalidValueError for spans that are none, that overlap, or that the budget cannot hold, and
        for what does not go with a static cache.
        """
        from kvpolicy.cache.eviction.spans import BatchSpans

        shares = None if divider is None else resolved("divider", divider)
        told = BatchSpans.of_texts(self, spans, protect, shares)
        if static or capacity is not None:
            check_static(static=static, capacity=capacity, storage=storage)
            return self._static_cache(model, prefill, told, capacity)
        from kvpolicy.huggingface.cache import PolicyCache

        pattern = None if prefill is None else resolved("prefill_pattern", prefill).part
        kept, title = (None, None) if storage is None else resolved("storage", storage)
        return PolicyCache(
            self, model, prefill=pattern, storage=kept, storage_title=title, spans=told
        )

    def _static_cache(
        self,
        model: PreTrainedModel | PeftModel,
        prefill: Part[PrefillPattern] | None,
        spans: BatchSpans | None,
        capacity: int | None,
    ) -> PolicyCache:
        from kvpolicy.huggingface.static.cache import StaticPolicyCache

        pattern = None if prefill is None else resolved("prefill_pattern", prefill).part
        return StaticPolicyCache(self, model, capacity=capacity, prefill=pattern, spans=spans)

    def applied(
        self,
        model: PreTrainedModel | PeftModel,
        *,
        prefill: Part[PrefillPattern] | None = None,
        storage: Part[AnyStorage] | None = None,
        spans: GivenSpans | None = None,
        protect: Sequence[str] | bool = (),
        divider: Part[Divider] | None = None,
        static: bool = False,
        capacity: int | None = None,
    ) -> Applied:
        """Give every `generate` of `model` in a `with` block an empty cache of this policy.

        For code that passes no cache: pipelines over lists, chats, harnesses, streamers. The block
        collects a report for each `generate`. It leaves alone a `generate` that is given a cache,
        plain forwards, and `generate_batch`. Beams, samples and assisted decoding are served;
        use_cache=False and cache_implementation are refused. The other arguments are those of
        `cache`.

        >>> import kvpolicy, torch
        >>> from kvpolicy.testing import tiny_model
        >>> model, prompt = tiny_model(), torch.arange(1, 101)[None]
        >>> with kvpolicy.recipe("snapkv", budget=40).applied(model) as applied:
        ...     _ = model.generate(prompt, max_new_tokens=1)
        >>> applied.reports[0].seen, applied.reports[0].held
        (100, 40)

        Raises UnsupportedModelError, with the reason, if the model cannot be served exactly.
        """
        from kvpolicy.huggingface.applied import Applied

        options: dict[str, Any] = {
            "prefill": prefill,
            "storage": storage,
            "spans": spans,
            "protect": protect,
            "divider": divider,
            "static": static,
            "capacity": capacity,
        }
        return Applied(model, partial(self.cache, model, **options))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Policy:
        """Build the policy that `to_dict` described.

        >>> import kvpolicy
        >>> policy = kvpolicy.recipe("snapkv", budget=64)
        >>> Policy.from_dict(policy.to_dict()) == policy
        True

        Raises what `kvpolicy.compose` raises.
        """
        return cls(**policy_fields(data))
