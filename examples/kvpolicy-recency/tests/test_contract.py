"""The plugin keeps every promise that kvpolicy makes about scorers and recipes."""

import kvpolicy.testing

test_contract = kvpolicy.testing.contract(plugin="recency")
