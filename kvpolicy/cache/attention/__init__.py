"""Attention that a model's own function cannot compute: uneven heads, sparse prompts."""
