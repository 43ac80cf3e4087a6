"""For tests that start vLLM: the engine runs in the test's process."""

import os

from kvpolicy.evaluation.serving.engine import ENVIRONMENT

os.environ.update(ENVIRONMENT | {"VLLM_LOGGING_LEVEL": "WARNING"})
