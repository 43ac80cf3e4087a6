"""The yardstick: compares an evicted cache with a full cache that masks what was evicted.

The replay shares no code with the cache that it measures: it has its own attention and masks.
`kvpolicy exactness` measures every model type and recipe; docs/exactness.md has the result.
"""
