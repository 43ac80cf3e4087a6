"""The stages of eviction, in order: observe, score, smooth, allocate, select, compact."""
