"""Tasks: a user's own data, and public benchmarks."""
