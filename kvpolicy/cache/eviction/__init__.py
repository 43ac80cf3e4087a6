"""From what a layer holds to what it keeps: show, rank, allocate, keep."""
