"""What can be asked for by name: "paper", a part of it, or one set of a part."""

from collections.abc import Iterable
from typing import Literal, NamedTuple, cast

from rwkv_jax.evaluation.catalog.classification import CLASSIFICATION, LINEAR_PROBE, ZERO_SHOT
from rwkv_jax.evaluation.catalog.retrieval_sets import RETRIEVAL

Kind = Literal["zero_shot", "linear_probe", "retrieval"]

# The sets of the papers' tables; zero-shot can be asked of all 27.
TABLES: dict[Kind, tuple[str, ...]] = {
    "zero_shot": ZERO_SHOT,
    "linear_probe": LINEAR_PROBE,
    "retrieval": tuple(RETRIEVAL),
}
SETS: dict[Kind, tuple[str, ...]] = TABLES | {"zero_shot": tuple(CLASSIFICATION)}


class Task(NamedTuple):
    """One evaluator on one set."""

    kind: Kind
    dataset: str

    @property
    def name(self) -> str:
        """E.g. "zero_shot/cifar10"."""
        return f"{self.kind}/{self.dataset}"


def tasks_of(names: Iterable[str]) -> tuple[Task, ...]:
    """The tasks that the names ask for, each once.

    Example:
      >>> [task.name for task in tasks_of(["retrieval", "zero_shot/cifar10"])]
      ['retrieval/coco', 'retrieval/flickr30k', 'zero_shot/cifar10']

    Args:
      names: "paper", "zero_shot", "linear_probe", "retrieval" or "PART/SET".

    Raises:
      ValueError: a name is none of these.
    """
    found: dict[Task, None] = {}
    for name in names:
        first, slash, dataset = name.partition("/")
        kind = cast(Kind, first)
        if name == "paper":
            some = [Task(part, each) for part, sets in TABLES.items() for each in sets]
        elif kind in TABLES and not slash:
            some = [Task(kind, each) for each in TABLES[kind]]
        elif kind in SETS and dataset in SETS[kind]:
            some = [Task(kind, dataset)]
        elif kind in SETS:
            known = ", ".join(SETS[kind])
            raise ValueError(f"the suite has no set {dataset!r} of {kind}; its sets: {known}")
        else:
            raise ValueError(
                f"the suite has no part {name!r}; ask for paper, {', '.join(TABLES)}, or one set,"
                " such as zero_shot/cifar10"
            )
        found |= dict.fromkeys(some)
    return tuple(found)
