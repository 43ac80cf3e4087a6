"""The columns of the table of models that read media: recipes of each kind, and usages."""

from __future__ import annotations

from functools import partial

from transformers import PreTrainedModel

from kvpolicy import Policy
from kvpolicy.errors import UnsupportedModelError
from kvpolicy.exactness.media.usages import (
    media_by_forward,
    media_in_the_second_turn,
    padded_batch_with_media,
    prompt_with_media,
)
from kvpolicy.exactness.usages.inputs import Usage, small_policy

RECIPES = ("snapkv", "adakv", "h2o", "streamingllm")
"""A recipe of each kind beside ReST-KV: a window, uneven heads, running state, renumbered slots."""


def _with_recipe(recipe: str, usage: Usage, model: PreTrainedModel, policy: Policy) -> float:
    """Measure a usage with another recipe than the line's.

    Raises UnsupportedModelError where the yardstick cannot turn the model's keys.
    """
    try:
        return usage(model, small_policy(recipe))
    except ValueError as error:
        if "the yardstick does not know" in str(error):
            raise UnsupportedModelError(f"not measured: {error}") from error
        raise


COLUMNS: dict[str, Usage] = {
    "a prompt with media": prompt_with_media,
    "media by forward": media_by_forward,
    "a padded batch with media": padded_batch_with_media,
    "media in the second turn": media_in_the_second_turn,
    **{
        f"{each}: a prompt with media": partial(_with_recipe, each, prompt_with_media)
        for each in RECIPES
    },
}
