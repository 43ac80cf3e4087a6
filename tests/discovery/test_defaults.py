"""The parts that come with kvpolicy keep every promise of their kind."""

import kvpolicy.testing

test_contract = kvpolicy.testing.contract(plugin="core")
