"""Model types that a test needs."""

import pytest
from transformers import CONFIG_MAPPING


def needs_type(model_type):
    """Skip the test if transformers has no such type.

    The oldest transformers that is allowed has fewer types, and `make oldest` runs these tests too.
    """
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {model_type}")
