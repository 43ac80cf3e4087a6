"""What stands in an option's place is checked, and named if it cannot."""

import attrs
import pytest

from kvpolicy import options
from kvpolicy.errors import InvalidValueError


@pytest.mark.parametrize(
    ("validator", "fitting"),
    [
        (options.natural, [0, 1, 10**9]),
        (options.count, [1, 2, 10**9]),
        (options.odd_count, [1, 3]),
        (options.positive, [0.1, 1e9]),
        (options.share, [0.0, 0.5, 1.0]),
        (options.natural_or_share, [0, 7, 0.0, 0.5]),
        (options.boolean, [True, False]),
        ([options.positive, options.at_least(1)], [1.0, 9.5]),
        ([options.count, options.at_most(9)], [1, 9]),
        (options.one_of("mean", "max"), ["mean", "max"]),
    ],
)
def test_what_fits_is_taken(validator, fitting):
    for value in fitting:
        assert part(validator)(size=value).size == value


@pytest.mark.parametrize(
    ("validator", "value", "message"),
    [
        (options.natural, -1, "'size' must be at least 0, not -1"),
        (options.natural, True, "'size' must be an int, not True"),
        (options.count, 0, "'size' must be at least 1, not 0"),
        (options.count, 1.0, "'size' must be an int, not 1.0"),
        (options.count, None, "'size' must be an int, not None"),
        (options.odd_count, 4, "'size' must be odd, .*, not 4"),
        (options.odd_count, -1, "'size' must be at least 1, not -1"),
        (options.positive, 0.0, "'size' must be above 0 and finite, not 0.0"),
        (options.positive, float("nan"), "'size' must be above 0 and finite, not nan"),
        (options.positive, float("inf"), "'size' must be above 0 and finite, not inf"),
        (options.positive, "1", "'size' must be a number, not '1'"),
        (options.share, 1.5, r"'size' must be in \[0, 1\], not 1.5"),
        (options.share, 1, "'size' must be a number, not 1"),
        (options.natural_or_share, 1.0, r"a float 'size' is a share .* in \[0, 1\), not 1.0"),
        (options.boolean, 1, "'size' must be True or False, not 1"),
        (options.at_least(1), 0.5, "'size' must be at least 1, not 0.5"),
        (options.at_least(1), float("nan"), "'size' must be at least 1, not nan"),
        (options.at_most(9), 10, "'size' must be at most 9, not 10"),
        (options.at_most(9), float("nan"), "'size' must be at most 9, not nan"),
        (options.one_of("mean", "max"), "meen", "'mean', 'max', not 'meen'. Did you mean 'mean'?"),
    ],
)
def test_what_does_not_fit_is_named(validator, value, message):
    with pytest.raises(InvalidValueError, match=message):
        part(validator)(size=value)


def test_whole_numbers_may_stand_for_floats():
    assert repr(options.as_float(2)) == "2.0"
    assert options.as_float("2") == "2"
    assert options.as_float(True) is True


def test_whole_numbers_that_no_float_can_hold_are_refused():
    for value in (10**400, -(10**400)):
        with pytest.raises(InvalidValueError, match="'size' must be above 0 and finite"):
            attrs.make_class(
                "Part",
                {"size": attrs.field(converter=options.as_float, validator=options.positive)},
            )(size=value)


def part(validator):
    return attrs.make_class("Part", {"size": attrs.field(validator=validator)})
