"""Prompts with several instructions, each checked by a rule, and prompts that must stay secret.

After the questions of "The Pitfalls of KV Cache Compression" (Chen et al., 2025, arXiv 2510.00231):
which instructions of a prompt does eviction drop, and does a model then reveal its system prompt?
The instructions are of IFEval's kind; the texts are kvpolicy's own.
"""
