"""Three of the papers' sets, a few pictures of each, in the forms that people have them in."""

import json
from pathlib import Path

import cv2
import numpy as np

CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PETS = ("Abyssinian", "Bengal", "Pug")


def picture(rng, hue):
    """A plain colour, a little noisy, as PNG."""
    pixels = np.clip(np.array(hue) + rng.integers(-20, 20, (12, 12, 3)), 0, 255)
    return cv2.imencode(".png", pixels.astype(np.uint8))[1].tobytes()


def write_cifar10(folder):
    """As TFDS stores it: 30 training and 20 test pictures."""
    import tensorflow_datasets as tfds

    class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("3.0.2")

        def _info(self):
            features = {
                "id": tfds.features.Text(),
                "image": tfds.features.Image(shape=(12, 12, 3)),
                "label": tfds.features.ClassLabel(names=list(CIFAR)),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(30, 0), "test": self._generate_examples(20, 1)}

        def _generate_examples(self, count, seed):
            rng = np.random.default_rng(seed)
            for i in range(count):
                hue = (25 * (i % 10), 120, 255 - 25 * (i % 10))
                example = {"id": f"{seed}_{i}", "image": picture(rng, hue), "label": i % 10}
                yield i, example

    Cifar10(data_dir=folder, file_format="array_record").download_and_prepare()


def write_sets(folder: Path) -> None:
    """cifar10 as TFDS prepares it, pets as a folder, flickr30k with Karpathy's file."""
    write_cifar10(str(folder))
    rng = np.random.default_rng(5)
    for part, count in (("train", 6), ("test", 4)):
        for i, pet in enumerate(PETS):
            of_class = folder / "pets" / part / pet
            of_class.mkdir(parents=True)
            for k in range(count):
                (of_class / f"{k}.png").write_bytes(picture(rng, (80 * i, 200 - 80 * i, 30)))
    images = []
    (folder / "flickr30k" / "flickr30k-images").mkdir(parents=True)
    for i in range(7):
        name = f"{i}.jpg"
        file = picture(rng, (30 * i, 100, 200 - 20 * i))
        (folder / "flickr30k" / "flickr30k-images" / name).write_bytes(file)
        # No two of the same words in another order: an untrained model's features are their mean.
        sentences = [{"raw": f"caption {k} of picture {i}"} for k in "abcdef"]
        split = "test" if i < 6 else "train"
        images.append({"filename": name, "split": split, "sentences": sentences})
    (folder / "flickr30k" / "dataset_flickr30k.json").write_text(json.dumps({"images": images}))
