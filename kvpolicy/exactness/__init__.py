"""The yardstick: evicted caches beside full caches that mask what was evicted."""
