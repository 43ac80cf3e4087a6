"""The CPU benchmark: evicting one layer, decoding, and the peak memory of whole prompts.

python -m benchmarks.cpu --output rows.jsonl
"""
