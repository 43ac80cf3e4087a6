"""The GPU benchmark: ceilings, kernels, eviction of a layer, whole prefills and decoding.

python -m benchmarks.gpu --output rows.jsonl
"""
