"""`python -m kvpolicy.evaluation.needle` prints own data that the needle model answers."""

import json

import kvpolicy
from kvpolicy.evaluation.needle import loading
from kvpolicy.evaluation.needle.__main__ import main


def test_the_needle_model_answers_the_rows_that_are_printed(capsys):
    main(prompts=2, tokens=128, facts=4)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 2
    found = kvpolicy.evaluate(
        *loading.load(), recipes=[], data=rows, metric="contains", max_new_tokens=3
    )
    [full] = found.cells
    assert full.estimate.value == 1
