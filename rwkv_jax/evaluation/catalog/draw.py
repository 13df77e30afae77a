"""Which pictures a `Draw` takes: orders that anyone can compute again."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from rwkv_jax.data.records import DatasetError
from rwkv_jax.evaluation.catalog.entry import Draw

TORCH_SEED = 3072  # of every loader of the authors' evaluation


def torch_permutation(count: int, seed: int) -> Int[np.ndarray, " count"]:
    """What torch.randperm(count, generator=torch.Generator().manual_seed(seed)) gives on a CPU.

    Both draw 32 bits at a time from MT19937 with the same seeding; torch exchanges place i with
    place i + bits % (count - i).

    Example:
      >>> torch_permutation(5, 3072).tolist()  # as torch 2.14.1 has it
      [1, 4, 3, 2, 0]
    """
    bits = np.random.RandomState(seed).randint(0, 2**32, max(count - 1, 0), dtype=np.uint32)
    order = list(range(count))
    for i, drawn in enumerate(bits.tolist()):
        other = i + drawn % (count - i)
        order[i], order[other] = order[other], order[i]
    return np.array(order, np.int64)


def drawn(
    draw: Draw, name: str, keys: Sequence[str], classes: Int[np.ndarray, " n"]
) -> Int[np.ndarray, " m"]:
    """The places of the pictures that `draw` takes.

    Args:
      draw: what is taken.
      name: the set's; part of what is hashed.
      keys: [n] the pictures' names.
      classes: [n] their classes.

    Raises:
      DatasetError: there are not as many pictures as the parts need.
    """
    if draw.order == "torch_3072":
        # torchvision lists pictures class by class, and by name within a class
        listed = sorted(range(len(keys)), key=lambda i: (classes[i], keys[i]))
        order = np.array(listed, np.int64)[torch_permutation(len(keys), TORCH_SEED)]
    else:
        hashes = [hashlib.sha256(f"{name}/{key}".encode()).digest() for key in keys]
        order = np.array(sorted(range(len(keys)), key=hashes.__getitem__), np.int64)
    if not draw.each_class:
        return _cut(draw, order, name)
    by_class: dict[int, list[int]] = defaultdict(list)
    for i in order:
        by_class[int(classes[i])].append(int(i))
    parts = [
        _cut(draw, np.array(of_class, np.int64), f"class {label} of {name}")
        for label, of_class in sorted(by_class.items())
    ]
    return np.sort(np.concatenate(parts))


def _cut(draw: Draw, order: Int[np.ndarray, " n"], what: str) -> Int[np.ndarray, " m"]:
    if len(order) < draw.skip + draw.count:
        raise DatasetError(
            f"{what} has {len(order)} pictures, but its parts need {draw.skip + draw.count}:"
            " it is not prepared whole"
        )
    return np.sort(order[draw.skip : draw.skip + draw.count])
