"""Whether vLLM gives what a `PolicyCache` gives: kept positions, tokens and log probabilities."""
