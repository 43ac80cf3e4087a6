"""One prompt and one policy: which tokens survive, and why an answer is wrong."""
