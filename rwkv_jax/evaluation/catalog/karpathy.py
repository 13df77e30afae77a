"""A split of Karpathy's caption files: pictures with several captions each.

    DATA_DIR/coco/dataset_coco.json            {"images": [{"filename", "filepath", "split",
    DATA_DIR/coco/val2014/COCO_val2014_*.jpg     "sentences": [{"raw": caption}, ...]}, ...]}
    DATA_DIR/flickr30k/dataset_flickr30k.json
    DATA_DIR/flickr30k/flickr30k-images/*.jpg

A picture may lie in the folder that the file names ("filepath"), in one of FOLDERS, or beside the
file.
"""

import hashlib
import json
from pathlib import Path

from rwkv_jax.data.records import DatasetError, Record

FOLDERS = ("images", "flickr30k-images", "flickr30k_images")


class KarpathySource:
    """See `rwkv_jax.data.records.Source`; the captions are the text kind "caption"."""

    text_kinds = ("caption",)

    def __init__(self, path: Path, split: str, captions: int | None) -> None:
        """Args:
          path: the JSON file.
          split: "test", say.
          captions: the first so many of each picture; None takes all.

        Raises:
          DatasetError: the file is no such file, has no such split, or a picture is missing.
        """
        self._root = path.parent
        self.class_names: dict[str, tuple[str, ...]] = {}
        self.name = f"{path.parent.name}/{split}"
        self.split = f"Karpathy's {split}, " + (
            f"the first {captions} captions of a picture" if captions else "all captions"
        )
        try:
            rows = [
                (
                    each.get("filepath", ""),
                    each["filename"],
                    tuple(str(sentence["raw"]) for sentence in each["sentences"])[:captions],
                )
                for each in json.loads(path.read_bytes())["images"]
                if each["split"] == split
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DatasetError(
                f"{path} is none of Karpathy's caption files: {type(error).__name__}: {error}"
            ) from error
        if not rows:
            raise DatasetError(f"{path} has no picture of the split {split!r}.")
        self._rows = [(self._find(folder, file, path), texts) for folder, file, texts in rows]
        digest = hashlib.sha256()
        for place, texts in self._rows:
            size = (self._root / place).stat().st_size
            digest.update(json.dumps([place, size, texts]).encode())
        self.content_hash = digest.hexdigest()

    def _find(self, folder: str, file: str, path: Path) -> str:
        if ".." in Path(folder).parts + Path(file).parts or Path(folder, file).is_absolute():
            raise DatasetError(f"{path}: {folder}/{file} lies outside the folder.")
        for place in (folder, *FOLDERS, ""):
            if (self._root / place / file).is_file():
                return Path(place, file).as_posix()
        raise DatasetError(
            f"{path} names the picture {file}, but it is neither in"
            f" {self._root / (folder or FOLDERS[0])} nor beside it; unpack the pictures there."
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        record = self.describe(index)
        record["image"] = (self._root / record["key"]).read_bytes()
        return record

    def describe(self, index: int) -> Record:
        """The record without its picture, which is not read."""
        place, texts = self._rows[index]
        return Record(key=place, image=b"", texts={"caption": texts}, labels={})
