"""Every image meets every text, with little of either in one place.

The devices that a batch is split over stand in a ring. Each keeps its images, and the texts travel:
after k steps device d holds the texts of device d + k. What is found out about a text on the way
(a sum over images, a gradient) travels with it and comes home with the last step. On a device the
texts are taken a chunk at a time, so no more than [pairs a device, chunk] scores exist at once,
whatever the global batch.

Outside of a mesh, and on one device, the ring has one place and nothing travels.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, PyTree

from rwkv_jax.mesh import BATCH_AXES, axis_sizes, batch_parts

Resident = TypeVar("Resident")  # of the images: stays on its device
Texts = TypeVar("Texts")  # arrays [texts, ...]: travels, and does not change
Found = TypeVar("Found")  # arrays [texts, ...]: about texts; travels with them


class Ring(NamedTuple):
    """The devices of the current mesh (`jax.set_mesh`) that a batch is split over."""

    axes: tuple[str, ...]
    size: int

    @classmethod
    def of_current_mesh(cls) -> "Ring":
        sizes = axis_sizes()
        return cls(tuple(axis for axis in BATCH_AXES if sizes[axis] > 1), batch_parts())

    def on_each_device(self, function: Callable, *, split: str, returns: str) -> Callable:
        """`function` on every device's part of its arguments.

        Args:
            split: a letter an argument: "b" is split along its leading axis, "-" is not.
            returns: the same of what it returns; what is "-" must be the same on all devices.
        """
        if self.size == 1:
            return function
        specs = {"b": PartitionSpec(self.axes), "-": PartitionSpec()}
        return jax.shard_map(
            function,
            in_specs=tuple(specs[letter] for letter in split),
            out_specs=tuple(specs[letter] for letter in returns),
            # Loops here begin with zeros that are the same everywhere and end with sums that are
            # not, which the check would want to have said of each.
            check_vma=False,
        )

    def sum(self, x: Array) -> Array:
        """Over all devices, inside of `on_each_device`."""
        return x if self.size == 1 else jax.lax.psum(x, self.axes)

    def pass_on(self, tree: PyTree) -> PyTree:
        """To the device before, from the device behind."""
        if self.size == 1:
            return tree
        pairs = [(device, (device - 1) % self.size) for device in range(self.size)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, self.axes, pairs), tree)

    def go_round(
        self,
        meet: Callable[[Resident, Texts], tuple[Resident, Found]],
        join: Callable[[Found, Found], Found],
        resident: Resident,
        texts: Texts,
        nothing: Found,
        *,
        chunk: int,
    ) -> tuple[Resident, Found]:
        """Lets this device's images meet all texts, inside of `on_each_device`.

        Args:
            meet: of the images with a chunk of texts: what is known of the images, brought up to
                date, and what these images say of these texts.
            join: what some images and what other images say of the same texts.
            resident: what is known of the images before they met any text.
            texts: this device's, [b, ...] each.
            nothing: what is known of them before, [b, ...]; joining it changes nothing.
            chunk: texts at a time; divides b.

        Returns:
            `resident` after all texts, and what all images say of this device's own texts.
        """

        def step(carry, _):
            resident, texts, found = carry
            # What is sent was there before this step, so sending hides behind the meeting.
            next_texts, arrived = self.pass_on((texts, found))
            resident, said = _in_chunks(meet, resident, texts, chunk)
            return (resident, next_texts, join(arrived, said)), None

        (resident, _, found), _ = jax.lax.scan(step, (resident, texts, nothing), length=self.size)
        return resident, self.pass_on(found)


def _in_chunks(
    meet: Callable[[Resident, Texts], tuple[Resident, Found]],
    resident: Resident,
    texts: Texts,
    chunk: int,
) -> tuple[Resident, Found]:
    pairs = jax.tree.leaves(texts)[0].shape[0]
    if pairs == chunk:
        return meet(resident, texts)
    # [b, ...] -> [b / chunk, chunk, ...], and back
    chunks = jax.tree.map(lambda x: x.reshape(-1, chunk, *x.shape[1:]), texts)
    resident, found = jax.lax.scan(meet, resident, chunks)
    return resident, jax.tree.map(lambda x: x.reshape(pairs, *x.shape[2:]), found)


def fitting_chunk(chunk: int, pairs: int) -> int:
    """`chunk`, or all of a device's pairs where they are fewer.

    Raises:
        ValueError: `chunk` does not divide `pairs`.
    """
    if pairs > chunk and pairs % chunk:
        fits = max(n for n in range(1, chunk + 1) if pairs % n == 0)
        raise ValueError(
            f"loss.chunk = {chunk} does not divide the {pairs} pairs of a device: the nearest below"
            f" that does is {fits}"
        )
    return min(chunk, pairs)
