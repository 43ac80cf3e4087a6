"""The benchmark of sparse prefill: how much sooner the first token comes."""
