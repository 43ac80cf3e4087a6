"""An engine computes jobs, in this process where there is no cluster."""

from __future__ import annotations

import pytest

from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation.runs.engine import InProcess, engine_of


def test_a_model_is_computed_with_in_this_process(needle_pair):
    model, tokenizer = needle_pair
    with engine_of(model, tokenizer, None) as engine:
        assert engine.tokenizer is tokenizer
        assert engine.identity["class"] == "LlamaForCausalLM"


def test_there_is_either_a_model_or_an_engine(needle_pair):
    engine = InProcess(model=needle_pair[0], tokenizer=needle_pair[1])
    assert engine_of(None, None, engine) is engine
    with pytest.raises(InvalidValueError, match="give a model and its tokenizer, or an engine"):
        engine_of(needle_pair[0], None, None)
    with pytest.raises(InvalidValueError, match=r"the engine loads the model .* Leave them out"):
        engine_of(*needle_pair, engine)
