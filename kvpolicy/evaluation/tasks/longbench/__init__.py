"""LongBench and LongBench-E, from files in the official format (THUDM/LongBench, MIT)."""
