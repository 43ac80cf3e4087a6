"""What a forward costs the host of a GPU: waits, copies and launches, counted without a GPU."""
