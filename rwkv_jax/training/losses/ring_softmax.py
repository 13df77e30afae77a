"""`full_softmax` round a ring, with its gradient written out: nothing of size B x B is ever kept.

With logits z_ij = scale * image_i . text_j, P_ij = [label_i = label_j] and n_i = sum_j P_ij, the
loss is

    1 / 2B  sum_i ( log sum_j exp z_ij  +  log sum_j exp z_ji  -  2 / n_i sum_j P_ij z_ij )

(P is symmetric and n_i = n_j wherever P_ij = 1, so both directions have the same last term), and

    dloss / dz_ij = 1 / 2B ( exp z_ij / sum_k exp z_ik + exp z_ij / sum_k exp z_kj - 2 P_ij / n_i )

The backward pass computes z again, chunk by chunk, and keeps the two sums of each pair.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rwkv_jax.training.losses.features import l2_normalise, product
from rwkv_jax.training.losses.full import PairLosses
from rwkv_jax.training.losses.labels import same_label
from rwkv_jax.training.losses.ring import Ring, fitting_chunk


def ring_softmax(
    image_features: Float[Array, "B D"],
    text_features: Float[Array, "B D"],
    scale: Float[Array, ""],
    labels: Int[Array, "B"],
    *,
    chunk: int,
) -> PairLosses:
    """`full_softmax`, with [pairs a device, chunk] scores at a time; the same arguments and result.

    Source: the running maximum and sum are those of Milakov and Gimelshein 2018 (arXiv 1805.02867).

    Raises:
        ValueError: `chunk` does not divide the pairs of a device.
    """
    image, text = l2_normalise(image_features), l2_normalise(text_features)
    return PairLosses(*_loss(chunk, image, text, jnp.asarray(scale, jnp.float32), labels))


class ExpSum(NamedTuple):
    """sum exp z as exp(maximum) * total. In two parts: exp z may exceed float32, and their
    logarithm would round away digits that z - maximum still has."""

    maximum: Float[Array, " N"]
    total: Float[Array, " N"]

    @classmethod
    def of(cls, z: Float[Array, "R C"], axis: int) -> "ExpSum":
        maximum = jnp.max(z, axis=axis)
        return cls(maximum, jnp.sum(jnp.exp(z - jnp.expand_dims(maximum, axis)), axis=axis))

    @classmethod
    def of_nothing(cls, n: int) -> "ExpSum":
        # Not minus infinity, whose difference to itself is no number.
        return cls(jnp.full(n, jnp.finfo(jnp.float32).min), jnp.zeros(n))

    def join(self, other: "ExpSum") -> "ExpSum":
        maximum = jnp.maximum(self.maximum, other.maximum)
        return ExpSum(
            maximum,
            self.total * jnp.exp(self.maximum - maximum)
            + other.total * jnp.exp(other.maximum - maximum),
        )

    def above(self, z: Float[Array, " N"]) -> Float[Array, " N"]:
        """log sum exp - z, without rounding at the size of z."""
        return jnp.log(self.total) + (self.maximum - z)

    def softmax(self, z: Float[Array, "R C"], axis: int) -> Float[Array, "R C"]:
        """exp z over the sum; `axis` is the one that was summed."""
        maximum, total = (jnp.expand_dims(x, axis) for x in self)
        return jnp.exp(z - maximum) / total


class _Row(NamedTuple):
    """What an image knows of the texts it met."""

    exp_sum: ExpSum
    right: Float[Array, " b"]  # sum of the logits of right answers
    answers: Float[Array, " b"]  # how many they are


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(chunk, image, text, scale, labels):
    return _forward(chunk, image, text, scale, labels)[0]


def _forward(chunk, image, text, scale, labels):
    ring = Ring.of_current_mesh()
    pairs = len(labels)

    def on_device(image, text, scale, labels):
        b = len(labels)

        def meet(row: _Row, texts):
            text, text_labels = texts
            z = scale * product(image, text.T)
            right = same_label(labels, text_labels)
            row = _Row(
                row.exp_sum.join(ExpSum.of(z, axis=1)),
                row.right + jnp.sum(jnp.where(right, z, 0.0), axis=1),
                row.answers + jnp.sum(right, axis=1),
            )
            return row, ExpSum.of(z, axis=0)

        row, column = ring.go_round(
            meet,
            ExpSum.join,
            _Row(ExpSum.of_nothing(b), jnp.zeros(b), jnp.zeros(b)),
            (text, labels),
            ExpSum.of_nothing(b),
            chunk=fitting_chunk(chunk, b),
        )
        right = row.right / row.answers
        losses = (row.exp_sum.above(right) + column.above(right)) / 2
        mean = ring.sum(jnp.sum(losses)) / pairs
        return mean, losses, row.exp_sum, column, row.answers

    run = ring.on_each_device(on_device, split="bb-b", returns="-bbbb")
    mean, losses, row, column, count = run(image, text, scale, labels)
    return (mean, losses), (image, text, scale, labels, row, column, count)


def _backward(chunk, kept, gradients):
    gradient, _ = gradients  # the losses of single pairs are to look at alone
    ring = Ring.of_current_mesh()
    pairs = len(kept[0])

    def on_device(image, text, scale, labels, row: ExpSum, column: ExpSum, count):
        def meet(image_gradient, texts):
            text, text_labels, column = texts
            z = scale * product(image, text.T)
            right = same_label(labels, text_labels)
            dz = row.softmax(z, axis=1) + column.softmax(z, axis=0)
            dz = dz - jnp.where(right, 2 / count[:, None], 0.0)
            return image_gradient + product(dz, text), product(dz.T, image)

        image_gradient, text_gradient = ring.go_round(
            meet,
            jnp.add,
            jnp.zeros_like(image),
            (text, labels, column),
            jnp.zeros_like(text),
            chunk=fitting_chunk(chunk, len(labels)),
        )
        # sum_ij dz_ij image_i . text_j, from what is there already
        scale_gradient = ring.sum(jnp.sum(image_gradient * image))
        return scale * image_gradient, scale * text_gradient, scale_gradient

    run = ring.on_each_device(on_device, split="bb-bbbb", returns="bb-")
    share = gradient / (2 * pairs)
    image, text, scale = (share * x for x in run(*kept))
    return image, text, scale, None


_loss.defvjp(_forward, _backward)
