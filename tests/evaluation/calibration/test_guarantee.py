"""The promise of a calibrated budget holds, within Monte Carlo error, over a thousand draws."""

import math
from random import Random

import pytest

from kvpolicy.errors import InvalidValueError
from kvpolicy.evaluation.calibration.guarantee import exceeding, least_samples, risk, smallest

CHOICES, DRAWS = 24, 1000


def losses(rng):
    """A sample's losses: it needs some choice, and luck spoils or saves it here and there."""
    needed = rng.gauss(CHOICES / 2, 4)
    return [
        max(0.0, (needed - choice) / CHOICES) + (0.2 if rng.random() < 0.03 else 0.0)
        for choice in range(CHOICES - 1)
    ] + [0.0]


@pytest.mark.parametrize(("samples", "alpha"), [(19, 0.1), (60, 0.1), (60, 0.25)])
def test_coverage_holds_over_a_thousand_draws(samples, alpha):
    rng = Random(f"{samples} {alpha}")
    exceeded = exact = 0
    for _ in range(DRAWS):
        calibration = [losses(rng) for _ in range(samples)]
        place = smallest(calibration, bound=0.05, alpha=alpha)
        coming = losses(rng)
        exceeded += coming[place] > 0.05
        exact += max(coming[place:]) > 0.05
    error = math.sqrt(alpha * (1 - alpha) / DRAWS)
    assert exceeded / DRAWS <= alpha + 3 * error
    # The promise is not empty either: what is charged comes near alpha, up to 1 / (n + 1).
    assert exact / DRAWS >= alpha - 2 / (samples + 1) - 3 * error


def test_a_loss_that_comes_back_is_charged_to_the_smaller_choices():
    assert exceeding([[0, 0, 1, 0]], 0.5) == [1, 1, 1, 0]
    assert exceeding([[0, float("nan"), 0, 0]], 0.5) == [1, 1, 0, 0]


def test_the_bound_itself_is_allowed():
    assert exceeding([[0.5, 0.5]], 0.5) == [0, 0]


@pytest.mark.parametrize(("alpha", "least"), [(0.5, 1), (0.1, 9), (0.05, 19), (0.01, 99)])
def test_the_least_number_of_samples_is_the_least(alpha, least):
    assert least_samples(alpha) == least
    assert risk(0, least) <= alpha + 1e-12
    assert risk(0, least - 1) > alpha
    assert smallest([[0.0]] * least, bound=0, alpha=alpha) == 0
    with pytest.raises(InvalidValueError, match=rf"Give at least {least} prompts"):
        smallest([[0.0]] * (least - 1), bound=0, alpha=alpha)


def test_no_choice_may_be_good_enough():
    assert smallest([[1.0, 1.0]] * 30, bound=0.5, alpha=0.1) is None


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 1.5, float("nan"), True, "0.1"])
def test_alpha_is_a_probability(alpha):
    with pytest.raises(InvalidValueError, match="above 0 and below 1"):
        smallest([[0.0]] * 30, bound=0, alpha=alpha)
