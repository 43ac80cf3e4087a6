"""Score, smooth, allocate, select, compact: the stages in order, and checks of their results."""
