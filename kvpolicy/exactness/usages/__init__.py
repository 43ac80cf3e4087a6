"""Usages: ways of using a cache. Each returns how far logits are from what they must equal.

Most usages compare with a full cache that masks what was evicted (`kvpolicy.exactness.replay`).
Some compare a conversation with the same conversation alone. A usage takes a model and a policy. It
returns the largest difference of a logit; NaN if a logit is not finite. Prompts are random tokens,
the same in each run.
"""

from __future__ import annotations

from kvpolicy.exactness.usages.batches import (
    beam_search,
    chosen_and_reordered_rows,
    left_padded_batch,
    long_padded_row_alone,
    padded_row_alone,
    repeated_rows,
    sampling,
    second_turn_of_a_padded_batch,
)
from kvpolicy.exactness.usages.inputs import PROMPT, Usage, small_policy, tokens
from kvpolicy.exactness.usages.modes import (
    assisted_decoding,
    compiled,
    output_attentions,
    prompt_lookup,
)
from kvpolicy.exactness.usages.people import (
    a_budget_for_each_turn,
    adapters_of_peft,
    padded_questions_to_one_context,
    policy_applied,
)
from kvpolicy.exactness.usages.several_caches import (
    after_a_failure,
    four_threads,
    interleaved_conversations,
    questions_to_clones,
    saved_and_loaded,
)
from kvpolicy.exactness.usages.spans import a_fair_share_for_each_span, protected_spans
from kvpolicy.exactness.usages.turns import (
    after_crop,
    chunked_prefill,
    five_turns,
    nothing_to_evict,
    one_prompt,
    reset_and_reused,
    second_turn_by_forward,
    second_turn_by_generate,
    second_turn_with_position_ids,
    system_prompt_first,
)

__all__ = [
    "AGAINST_ITSELF",
    "BITWISE",
    "MODES",
    "OF_PLAIN_DATA",
    "PROMPT",
    "USAGES",
    "WAYS",
    "Usage",
    "one_prompt",
    "small_policy",
    "tokens",
]


def _named(*usages: Usage) -> dict[str, Usage]:
    return {usage.__name__.replace("_", " "): usage for usage in usages}


USAGES: dict[str, Usage] = _named(
    one_prompt,
    second_turn_by_generate,
    second_turn_by_forward,
    second_turn_with_position_ids,
    five_turns,
    system_prompt_first,
    chunked_prefill,
    left_padded_batch,
    second_turn_of_a_padded_batch,
    padded_row_alone,
    long_padded_row_alone,
    sampling,
    beam_search,
    repeated_rows,
    chosen_and_reordered_rows,
    after_crop,
    reset_and_reused,
    interleaved_conversations,
    four_threads,
    questions_to_clones,
    saved_and_loaded,
    after_a_failure,
    nothing_to_evict,
)
BITWISE = frozenset(
    _named(
        reset_and_reused,
        interleaved_conversations,
        questions_to_clones,
        nothing_to_evict,
        policy_applied,
    )
)
"""Usages that do the same computation twice. Both must be equal, bit for bit."""
AGAINST_ITSELF = BITWISE | set(
    _named(padded_row_alone, long_padded_row_alone, four_threads, saved_and_loaded, after_a_failure)
)
"""Usages that do not replay: they compare with the same policy, or with nothing evicted."""
MODES: dict[str, Usage] = _named(compiled, output_attentions, assisted_decoding, prompt_lookup)
"""Modes of a model and of `generate`. Each is served exactly or refused."""
WAYS: dict[str, Usage] = _named(
    adapters_of_peft,
    policy_applied,
    padded_questions_to_one_context,
    a_budget_for_each_turn,
    protected_spans,
    a_fair_share_for_each_span,
)
"""Ways of asking for an evicted cache."""
OF_PLAIN_DATA = frozenset(_named(saved_and_loaded))
"""Usages that need a policy of installed parts, since a file holds the names of parts."""
