"""Score, smooth, allocate, select, compact, in order, and the checks of what each returns."""
