"""What eviction inside vLLM saves: blocks, and so requests that run together, and time."""
