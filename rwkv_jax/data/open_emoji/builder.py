"""The TFDS builder: rendered pictures to ArrayRecord files, without TensorFlow."""

from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow_datasets as tfds

from rwkv_jax.data.open_emoji.emoji import Emoji
from rwkv_jax.data.open_emoji.pictures import Picture
from rwkv_jax.data.open_emoji.render import IMAGE_SIZE
from rwkv_jax.data.open_emoji.sources import Sources
from rwkv_jax.data.open_emoji.splits import SPLITS


def _in_order(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(names))


class OpenEmoji(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Takes its pictures when constructed: the class names are known only once these are read.

    TFDS reads what this writes back without this class (`tfds.builder_from_directory`).
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Six artists, Unicode 17."}  # noqa: RUF012

    def __init__(
        self,
        *,
        sources: Sources,
        pictures: Sequence[Picture],
        pngs: Sequence[bytes],
        emojis: Sequence[Emoji],
        data_dir: str,
    ):
        self._sources = sources
        self._pictures = list(zip(pictures, pngs, strict=True))
        shown = {picture.emoji.code for picture in pictures}
        self._emojis = [emoji for emoji in emojis if emoji.code in shown]
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        def classes(names: Sequence[str]) -> tfds.features.ClassLabel:
            return tfds.features.ClassLabel(names=_in_order(names))

        text = tfds.features.Text()
        packages = self._sources.packages
        return tfds.core.DatasetInfo(
            builder=self,
            description="The same concepts drawn by six artists, with human-written texts.",
            features=tfds.features.FeaturesDict(
                {
                    "key": text,
                    "image": tfds.features.Image(
                        shape=(IMAGE_SIZE, IMAGE_SIZE, 3), encoding_format="png"
                    ),
                    "texts": {
                        "name": tfds.features.Sequence(text),
                        "label": tfds.features.Sequence(text),
                        "tags": tfds.features.Sequence(text),
                    },
                    "concept": classes([emoji.label for emoji in self._emojis]),
                    "group": classes([emoji.group for emoji in self._emojis]),
                    "subgroup": classes([emoji.subgroup for emoji in self._emojis]),
                    "artist": classes(list(self._sources.artists)),
                }
            ),
            license="; ".join(f"{package.title}: {package.licence}" for package in packages),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        del dl_manager  # everything is here already
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        mine = [pair for pair in self._pictures if pair[0].split == split]
        for index, (picture, png) in enumerate(mine):
            yield (
                index,
                {
                    "key": picture.key,
                    "image": png,
                    "texts": {kind: list(texts) for kind, texts in picture.emoji.texts.items()},
                    "concept": picture.emoji.label,
                    "group": picture.emoji.group,
                    "subgroup": picture.emoji.subgroup,
                    "artist": picture.artist,
                },
            )
