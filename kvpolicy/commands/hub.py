"""Tells at once whether a model is on the Hugging Face Hub; transformers retries for a minute."""

from __future__ import annotations

from kvpolicy.errors import InvalidValueError, shown

SECONDS = 10.0
"""How long the Hub may take to answer."""


def looks_like_a_path(name: str) -> bool:
    """Say whether a name cannot be that of a model on the Hub.

    >>> [looks_like_a_path(each) for each in ("./qwen", "a/b/c", "model.gguf", "Qwen/Qwen3-8B")]
    [True, True, True, False]
    """
    files = (".gguf", ".safetensors", ".json", ".bin", ".pt")
    parts = name.split("/")
    return not all(parts) or len(parts) > 2 or name.startswith((".", "~")) or name.endswith(files)


def check_on_hub(name: str) -> None:
    """Raise InvalidValueError if no model of that name is here or on the Hub.

    The Hub is asked once. A model that was downloaded before is not asked for.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    try:
        if huggingface_hub.try_to_load_from_cache(name, "config.json") is not None:
            return
        if huggingface_hub.constants.HF_HUB_OFFLINE:
            return  # transformers does not try either, and says so
        huggingface_hub.HfApi().model_info(name, timeout=SECONDS)
    except RepositoryNotFoundError as error:
        raise InvalidValueError(
            f"there is no folder {shown(name)} here, and no model of that name on the Hugging Face "
            "Hub that you may read. Mend the name; for a private model run `hf auth login` first."
        ) from error
    except HFValidationError as error:
        raise InvalidValueError(
            f"there is no folder {shown(name)} here, and no model on the Hub can have that name: "
            f"{error}"
        ) from error
    except HfHubHTTPError:
        return  # the Hub answers: transformers says what is wrong
    except Exception as error:
        raise InvalidValueError(
            f"there is no folder {shown(name)} here, and the Hugging Face Hub cannot be reached: "
            f"{error}. Mend the path, or try again with a connection."
        ) from error
