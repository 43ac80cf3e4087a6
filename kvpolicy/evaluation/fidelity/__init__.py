"""How true evicted caches stay to the full one, between chance and an oracle, on the needle model.

python -m kvpolicy.evaluation.fidelity [--budgets 40,64,128] [--markdown | --json]
"""
