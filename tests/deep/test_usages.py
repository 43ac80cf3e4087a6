"""Every usage is exact or refused, with random policies in random models."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kvpolicy.errors import ComponentFailedError, InvalidComponentError, KvpolicyError
from kvpolicy.exactness.limits import LIMIT
from kvpolicy.exactness.strategies import models, policies
from kvpolicy.exactness.usages import AGAINST_ITSELF, BITWISE, USAGES

TWO_WAYS = {"padded row alone", "long padded row alone"}
"""Usages that compute scores in two ways, so that rounding may change which positions are kept."""


def ranks_rounding(model, policy):
    """Whether scores are norms of keys that the model has normalised: they differ by rounding."""
    normalised = any(name.endswith("k_norm") for name, _ in model.named_modules())
    return normalised and policy.to_dict()["scorer"]["name"] == "knorm"


@pytest.mark.parametrize("usage", USAGES)
def test_every_usage_is_exact_or_refused(usage, profile, count):
    @profile
    @given(st.data())
    def holds(data):
        model = data.draw(models(double=usage in TWO_WAYS))
        policy = data.draw(policies(model, exact=usage not in AGAINST_ITSELF))
        assume(usage not in TWO_WAYS or not ranks_rounding(model, policy))
        try:
            difference = USAGES[usage](model, policy)
        except (ComponentFailedError, InvalidComponentError):
            raise
        except KvpolicyError:
            count("usage:", usage, "refused")
            return
        except ValueError as error:
            # With per_turn a short turn may keep all that it has: there is nothing to compare.
            assume(not (policy.per_turn and "nothing was evicted" in str(error)))
            raise
        assert difference <= (0 if usage in BITWISE else LIMIT)
        count("usage:", usage)

    holds()
