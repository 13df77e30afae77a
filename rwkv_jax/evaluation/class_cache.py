"""Class features on disk, so that a checkpoint's prompts are encoded once: ImageNet has 80,000.

One file for each (weights, prompts), named by their hash: FOLDER/<sha256>.npy. A file that is
damaged is made anew; nothing is unpickled.
"""

import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from rwkv_jax.files import write_bytes_atomically

WORTH_KEEPING = 2048  # prompts; fewer are encoded in seconds, and the report wants their features
LAYOUT = 1  # part of the hash: a change of what is stored makes old files unused


class ClassCache:
    """Looks class features up by what they were computed from, and computes what is not there.

    Args:
      folder: where the files lie; made when the first is written.
      weights: names everything that a text's feature depends on beside the text: a hash of the
        parameters, and the precision and pooling they are used with.
    """

    def __init__(self, folder: Path, weights: str) -> None:
        self._folder = folder
        self._weights = weights

    def path(self, class_names: Sequence[str], templates: Sequence[str]) -> Path:
        """Where the features of these classes in these templates lie."""
        what = [LAYOUT, self._weights, list(class_names), list(templates)]
        return self._folder / f"{hashlib.sha256(json.dumps(what).encode()).hexdigest()}.npy"

    def get(
        self,
        class_names: Sequence[str],
        templates: Sequence[str],
        compute: Callable[[], Float32[np.ndarray, "classes D"]],
    ) -> Float32[np.ndarray, "classes D"]:
        """The stored features, or those that `compute` gives, which are then stored.

        Fewer than `WORTH_KEEPING` prompts are neither looked up nor stored.
        """
        if len(class_names) * len(templates) < WORTH_KEEPING:
            return compute()
        path = self.path(class_names, templates)
        try:
            stored = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):  # absent; no array; cut off
            stored = None
        if (
            stored is not None
            and stored.dtype == np.float32
            and stored.ndim == 2
            and len(stored) == len(class_names)
            and np.isfinite(stored).all()
        ):
            return stored
        features = compute()
        buffer = io.BytesIO()
        np.save(buffer, features)
        with contextlib.suppress(OSError):  # a full disk costs time later, and no figure
            write_bytes_atomically(path, buffer.getvalue())
        return features
