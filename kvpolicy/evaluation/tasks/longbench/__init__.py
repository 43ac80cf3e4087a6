"""LongBench: its 16 English tasks, from files in the official format (THUDM/LongBench, MIT)."""
