"""A small model of our own and the task it was trained for: find a fact, answer with its code."""

from kvpolicy.evaluation.needle.loading import MODEL, NAME, load
from kvpolicy.evaluation.needle.prompts import NeedlePrompt, generate_prompts, most_facts

__all__ = ["MODEL", "NAME", "NeedlePrompt", "generate_prompts", "load", "most_facts"]
