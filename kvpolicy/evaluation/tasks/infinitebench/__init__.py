"""InfiniteBench: its 12 tasks, from files in the official format (OpenBMB/InfiniteBench, MIT)."""
