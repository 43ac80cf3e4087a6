"""A user's script, as type checkers see it: `make lint` runs mypy over it."""

from __future__ import annotations

from typing import Any

import kvpolicy
from kvpolicy.evaluation import needle


def main() -> None:
    """Answer a prompt from an evicted cache, and say what the cache holds."""
    loaded: tuple[Any, Any] = needle.load()  # transformers has no types for `generate`
    model, tokenizer = loaded
    inputs = tokenizer("password ada amber . question password ada", return_tensors="pt")
    policy: kvpolicy.Policy = kvpolicy.recipe("restkv", budget=40, scorer={"window": 8}, sinks=2)
    with policy.cache(model) as cache:
        answer = model.generate(**inputs, past_key_values=cache, max_new_tokens=1)
        held: int = cache.report().held
        print(tokenizer.decode(answer[0, -1]), held, cache.nbytes, repr(policy))
    with policy.applied(model, storage={"name": "quantized", "bits": 8}) as applied:
        model.generate(**inputs, max_new_tokens=1)
    print(applied.reports[0].seen, kvpolicy.__version__)


if __name__ == "__main__":
    main()
