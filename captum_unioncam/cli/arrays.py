"""The file of ``--maps``: what numpy.load reads."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from captum_unioncam.errors import UserError
from captum_unioncam.explanation import Explanation, npz_content

Arrays = dict[str, npt.NDArray[Any]]


class MapFile:
    """Collects the maps, the targets and the gains of images, a row for each class."""

    def __init__(self) -> None:
        self._batches: list[Arrays] = []

    def add(self, names: Sequence[str], classes: Sequence[Explanation]) -> None:
        """Adds images, by the explanations of their first class, their second, ...

        Raises:
            UserError: If the maps have another size than those before.
        """
        several = [explanation.arrays() for explanation in classes]
        batch = {"images": np.repeat(np.array(names), len(several))}
        for key in several[0]:
            values = np.stack([arrays[key] for arrays in several], 1)  # (N, classes, *)
            batch[key] = values.reshape(-1, *values.shape[2:])
        for key, values in batch.items():
            before = self._batches[0][key] if self._batches else values
            if values.shape[1:] != before.shape[1:]:
                raise UserError(
                    f"`maps`: the {key} of {names[0]} have another size than those "
                    f"before, {values.shape[1:]} and {before.shape[1:]}; explain "
                    "images of one size"
                )
        self._batches.append(batch)

    def content(self) -> bytes:
        """Returns the content of the file; it is empty if there is no image."""
        batches = self._batches
        keys = list(batches[0]) if batches else []
        return npz_content(
            {key: np.concatenate([batch[key] for batch in batches]) for key in keys}
        )
