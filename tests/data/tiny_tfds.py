"""A TFDS dataset of four pictures, prepared by TFDS itself."""

import io
import json

import tensorflow_datasets as tfds
from picture_files import jpeg


class TinyPictures(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "caption": tfds.features.Text(),
                "label": tfds.features.ClassLabel(names=["even", "odd"]),
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(4):
            image = io.BytesIO(jpeg(i))
            yield i, {"image": image, "caption": f"picture {i}", "label": i % 2}


def prepare(folder):
    """Gives what TFDS says is in it."""
    builder = TinyPictures(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return json.loads(builder.info.as_json)
