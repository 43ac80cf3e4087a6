"""A cache whose decode step can be captured: it follows transformers' contract of static caches."""
