"""A grid of entrants and samples: one run each, written down as a row."""
