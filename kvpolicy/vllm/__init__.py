"""Eviction inside vLLM: `additional_config={"kvpolicy": {"recipe": "restkv", "budget": 1024}}`."""
