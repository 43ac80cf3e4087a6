"""Files of data sets on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

import attrs

from kvpolicy.errors import DataError, shown, told


@attrs.frozen(kw_only=True)
class HubFile:
    """A file of a data set on the hub: its repository, its name there, and its size in words.

    `instead` says how a task is given the file otherwise.
    """

    repository: str
    name: str
    size: str
    instead: str = "Give the folder that holds it as option folder=..."

    @property
    def origin(self) -> str:
        """Tell where the file comes from, and what to do without the hub.

        >>> print(HubFile(repository="a/b", name="c.zip", size="9 MB").origin)
        It is c.zip (9 MB) of the data set a/b on the Hugging Face Hub. Give the folder that holds
        it as option folder=...
        """
        return (
            f"It is {self.name} ({self.size}) of the data set {self.repository} on the Hugging "
            f"Face Hub. {self.instead}"
        )

    def fetched(self) -> Path:
        """Return the file in the hub's cache, where it is downloaded to if it is not there.

        Raises DataError if it cannot be had.
        """
        from huggingface_hub import constants, hf_hub_download

        try:
            return Path(hf_hub_download(self.repository, self.name, repo_type="dataset"))
        except Exception as error:
            offline = "HF_HUB_OFFLINE switches the hub off"
            why = offline if constants.HF_HUB_OFFLINE else told(error)
            raise DataError(
                f"cannot read {Path(self.name).name} in {shown(constants.HF_HUB_CACHE)}, the hub's "
                f"cache, nor download it: {why}. {self.origin}"
            ) from error
