"""Tasks, runs and pictures that compare policies fairly."""
