"""Several questions on one context, after SCBench (Li et al., 2024), generated at any length.

SCBench (microsoft/MInference, MIT) has the tasks `scbench_kv`, `scbench_prefix_suffix` and
`scbench_vt`, with about five questions on each context; its data are files of fixed length. Here
texts of the same kinds are written. New tokens and scores are SCBench's. `scbench_many_facts` is
kvpolicy's own.
"""
