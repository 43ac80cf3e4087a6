"""The entry point that vLLM calls in each of its processes."""

from __future__ import annotations

import functools
import logging
from typing import Any

from kvpolicy.errors import UnsupportedModelError
from kvpolicy.vllm.asked import asked_in

_MARK = "kvpolicy_wraps"


def register() -> None:
    """Let engines that ask for a policy get one; do nothing for the others.

    vLLM has no hook between reading its arguments and starting workers, so the method that makes
    an engine's configuration is wrapped. May be called several times.
    """
    try:
        from vllm.engine.arg_utils import EngineArgs

        own = EngineArgs.create_engine_config
    except (ImportError, AttributeError) as error:
        # Another vLLM must go on for those who asked for nothing.
        logging.getLogger("vllm.kvpolicy").warning("kvpolicy cannot evict in this vLLM: %s", error)
        return
    if not hasattr(own, _MARK):
        EngineArgs.create_engine_config = _configuring(own)


def _configuring(own: Any) -> Any:
    @functools.wraps(own)
    def create_engine_config(arguments: Any, *args: Any, **kwargs: Any) -> Any:
        asked = asked_in(getattr(arguments, "additional_config", None))
        if asked is None:
            return own(arguments, *args, **kwargs)
        from kvpolicy.vllm.engines import WORKERS, check_engine, check_version

        check_version(untested=asked.untested)
        if arguments.enable_prefix_caching is None:
            # vLLM's own default is True.
            arguments.enable_prefix_caching = False
        config = own(arguments, *args, **kwargs)
        check_engine(asked, config)
        worker = config.parallel_config.worker_cls
        if worker not in WORKERS:
            raise UnsupportedModelError(
                f"kvpolicy does not evict with the worker {worker}. It does with "
                f"{', '.join(WORKERS)}."
            )
        config.parallel_config.worker_cls = WORKERS[worker]
        return config

    setattr(create_engine_config, _MARK, own)
    return create_engine_config
