"""Several datasets as one: their records one after the other, with weights for the stream.

A kind of text keeps its name across datasets. Labels of one name become one list of classes, so
that two pictures are of one concept where the class has the same name, whichever dataset they are
from, and never only because both datasets counted from 0.
"""

import bisect
import hashlib
import itertools
import json
from collections.abc import Sequence

from rwkv_jax.data.records import DatasetError, Record, Source


class MixtureSource:
    """Sources one after the other. See `Source`.

    Attributes:
      parts: the indices of each source's records.
      weights: of each source in a training stream.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float]):
        """Raises DatasetError for no source, an empty one, or weights that are not above 0."""
        if not sources or len(sources) != len(weights):
            raise DatasetError(f"a mixture of {len(sources)} datasets has {len(weights)} weights")
        for source, weight in zip(sources, weights, strict=True):
            if not len(source) or not weight > 0:
                raise DatasetError(
                    f"{source.name} has {len(source)} records and the weight {weight} in a mixture;"
                    " both must be above 0"
                )
        self._sources = tuple(sources)
        self.weights = tuple(float(weight) for weight in weights)
        ends = list(itertools.accumulate(len(source) for source in sources))
        self._ends = ends
        self.parts = tuple(itertools.starmap(range, itertools.pairwise([0, *ends])))
        self.name = (
            "mixture("
            + ", ".join(
                f"{source.name} * {weight:g}"
                for source, weight in zip(sources, self.weights, strict=True)
            )
            + ")"
        )
        self.text_kinds = tuple(sorted({kind for s in sources for kind in s.text_kinds}))
        self.class_names = {
            label: tuple(dict.fromkeys(n for s in sources for n in s.class_names.get(label, ())))
            for label in dict.fromkeys(label for s in sources for label in s.class_names)
        }
        indices = {
            label: {name: i for i, name in enumerate(names)}
            for label, names in self.class_names.items()
        }
        self._classes = [
            {label: [indices[label][name] for name in names] for label, names in classes.items()}
            for classes in (source.class_names for source in sources)
        ]
        facts = [[s.content_hash, w] for s, w in zip(sources, self.weights, strict=True)]
        self.content_hash = hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record:
        part = bisect.bisect_right(self._ends, index)
        record = self._sources[part][index - self.parts[part].start]
        classes = self._classes[part]
        # A label whose classes have no names cannot be told from another dataset's.
        labels = {
            label: classes[label][value] if value >= 0 else -1
            for label, value in record["labels"].items()
            if label in classes
        }
        return Record(
            key=record["key"], image=record["image"], texts=record["texts"], labels=labels
        )
