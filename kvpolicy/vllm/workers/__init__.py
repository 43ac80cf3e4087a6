"""Workers of vLLM whose attention layers evict."""
