from kvpolicy.testing import contract

test_random = contract(plugin="random")
test_restkv = contract(plugin="restkv")
test_snapkv = contract(plugin="snapkv")
test_streamingllm = contract(plugin="streamingllm")
