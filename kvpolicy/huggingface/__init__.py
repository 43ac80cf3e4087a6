"""The seam to transformers: it observes attention and holds the evicted cache."""
