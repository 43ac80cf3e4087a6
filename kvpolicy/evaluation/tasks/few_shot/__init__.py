"""GLUE and MMLU: choices behind examples; the examples are evicted before the item is asked."""
