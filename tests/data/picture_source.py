"""A small source of real PNG files, some of them broken, for the tests of the loader."""

import io
import pathlib

import numpy as np
from PIL import Image

TEXT_KINDS = ("label", "tags")


class PictureSource:
    """Pictures of 20 x 24 pixels, a colour a record; picklable for Grain's workers.

    Args:
        size: number of records.
        broken: indices whose image file is cut off.
        wordless: indices that have only empty texts.
        missing: indices whose record cannot be read.
        texts: of every record, instead of its own.
    """

    text_kinds = TEXT_KINDS

    def __init__(
        self,
        size: int = 37,
        *,
        broken=(),
        wordless=(),
        missing=(),
        texts=None,
        content_hash: str = "abc",
    ):
        self.name = "pictures/train"
        self.class_names: dict[str, tuple[str, ...]] = {}
        self.content_hash = content_hash
        self._files = [_png(index) for index in range(size)]
        for index in broken:
            self._files[index] = self._files[index][:60]
        self._wordless, self._missing, self._texts = set(wordless), set(missing), texts

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int):
        if index in self._missing:
            pathlib.Path(f"no_such_folder/{index}.png").read_bytes()
        texts = {"label": (f"picture {index}",), "tags": ("red", f"number {index}", " ")}
        texts = self._texts or texts
        if index in self._wordless:
            texts = {"label": ("",), "tags": ("&nbsp;",)}
        labels = {"concept": index // 2} if index % 5 else {}
        return {"key": f"k{index}", "image": self._files[index], "texts": texts, "labels": labels}


def _png(index: int) -> bytes:
    rng = np.random.default_rng(index)
    corners = Image.fromarray(rng.integers(0, 256, (3, 3, 3)).astype(np.uint8))
    file = io.BytesIO()
    corners.resize((24, 20), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()
