"""One layer's cache, for any engine: what it holds, attends to and evicts."""
