"""The only room that knows transformers: it observes attention and holds the evicted cache."""
