import pytest

from kvpolicy.vllm.rounding import Rounding
from kvpolicy.vllm.step import Piece, Row, step_of

BLOCK = 32
ROUNDING = Rounding(budget=64, protected=0, window=8)


def _row(seen, queries, prompt=200, first=0):
    return Row(request="a", first=first, queries=queries, seen=seen, prompt=prompt)


def _step(*rows):
    return step_of(rows, ROUNDING, block=BLOCK)


@pytest.mark.parametrize("prompt", [10, 64, 95])
def test_a_prompt_within_the_budget_is_left_alone(prompt):
    step = _step(_row(prompt, prompt, prompt))
    assert step.is_plain
    assert step.pieces == [Piece(row=0, queries=prompt, seen=prompt)]


def test_a_chunk_before_the_end_is_only_read():
    step = _step(_row(150, 50))
    assert (step.reading, step.ending) == ([0], [])
    assert step.pieces == [Piece(row=0, queries=50, seen=150)]


def test_the_last_chunk_attends_to_all_and_ends_the_prompt():
    step = _step(_row(200, 50))
    assert (step.reading, step.ending, step.split) == ([], [0], [])
    assert step.pieces == [Piece(row=0, queries=50, seen=200)]


def test_an_answered_token_attends_to_what_is_held():
    step = _step(_row(230, 1))
    assert not step.reading
    assert not step.ending
    assert not step.is_plain
    # 4 of 7 blocks went; the prompt's last, partial block stays where it is.
    assert step.pieces == [Piece(row=0, queries=1, seen=102, start=2, gone=4)]


def test_a_preempted_request_is_read_again_in_two_pieces():
    step = _step(_row(230, 230))
    assert step.ending == [0]
    assert step.split == [0]
    assert step.pieces == [
        Piece(row=0, queries=200, seen=200),
        Piece(row=0, queries=30, seen=102, start=2, gone=4),
    ]
    assert step.rows[0].of_prompt == 200


def test_a_step_knows_its_requests_apart():
    step = _step(_row(201, 1), _row(40, 40, 40, first=1), _row(200, 120, first=41))
    assert [piece.row for piece in step.pieces] == [0, 1, 2]
    assert step.ending == [2]
    assert step.reading == []
    assert step.rows[2].before == 80


@pytest.mark.parametrize("prompt", range(150, 260))
def test_the_next_token_goes_where_the_scheduler_puts_it(prompt):
    step = _step(_row(prompt + 1, 1, prompt))
    [piece] = step.pieces
    place = prompt // BLOCK - piece.gone  # the block of position `prompt`, gone ones left out
    assert (piece.seen - 1) // BLOCK == place
    assert (piece.seen - 1) % BLOCK == prompt % BLOCK
