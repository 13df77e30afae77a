"""`full_sigmoid` round a ring, with its gradient written out: nothing of size B x B is ever kept.

With logits z_ij = scale * image_i . text_j + bias and s_ij = -1 where label_i = label_j, else 1,

    loss = 1 / B sum_ij softplus(s_ij z_ij)        dloss / dz_ij = 1 / B s_ij sigmoid(s_ij z_ij)

so a logit's gradient needs no other logit, and the forward pass keeps nothing but its inputs.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rwkv_jax.training.losses.features import l2_normalise, product
from rwkv_jax.training.losses.full import PairLosses
from rwkv_jax.training.losses.labels import same_label
from rwkv_jax.training.losses.ring import Ring, fitting_chunk


def ring_sigmoid(
    image_features: Float[Array, "B D"],
    text_features: Float[Array, "B D"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    labels: Int[Array, "B"],
    *,
    chunk: int,
) -> PairLosses:
    """`full_sigmoid`, with [pairs a device, chunk] scores at a time; the same arguments and result.

    Source: SigLIP (arXiv 2303.15343), section 3.3, passes texts from device to device like this.

    Raises:
        ValueError: `chunk` does not divide the pairs of a device.
    """
    image, text = l2_normalise(image_features), l2_normalise(text_features)
    scale, bias = (jnp.asarray(x, jnp.float32) for x in (scale, bias))
    return PairLosses(*_loss(chunk, image, text, scale, bias, labels))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(chunk, image, text, scale, bias, labels):
    return _forward(chunk, image, text, scale, bias, labels)[0]


def _signed_logits(image, text, scale, bias, labels, text_labels):
    """s [R, C] and s z [R, C] of images and texts."""
    z = scale * product(image, text.T) + bias
    sign = jnp.where(same_label(labels, text_labels), -1.0, 1.0)
    return sign, sign * z


def _forward(chunk, image, text, scale, bias, labels):
    ring = Ring.of_current_mesh()
    pairs = len(labels)

    def on_device(image, text, scale, bias, labels):
        b = len(labels)

        def meet(losses, texts):
            _, wrong_way = _signed_logits(image, texts[0], scale, bias, labels, texts[1])
            return losses + jnp.sum(jax.nn.softplus(wrong_way), axis=1), ()

        losses, _ = ring.go_round(
            meet,
            lambda nothing, _: nothing,
            jnp.zeros(b),
            (text, labels),
            (),
            chunk=fitting_chunk(chunk, b),
        )
        return ring.sum(jnp.sum(losses)) / pairs, losses

    run = ring.on_each_device(on_device, split="bb--b", returns="-b")
    return run(image, text, scale, bias, labels), (image, text, scale, bias, labels)


def _backward(chunk, kept, gradients):
    gradient, _ = gradients  # the losses of single pairs are to look at alone
    ring = Ring.of_current_mesh()
    pairs = len(kept[0])

    def on_device(image, text, scale, bias, labels):
        def meet(images, texts):
            image_gradient, bias_gradient = images
            text, text_labels = texts
            sign, wrong_way = _signed_logits(image, text, scale, bias, labels, text_labels)
            dz = sign * jax.nn.sigmoid(wrong_way)
            images = (image_gradient + product(dz, text), bias_gradient + jnp.sum(dz, axis=1))
            return images, product(dz.T, image)

        (image_gradient, bias_gradient), text_gradient = ring.go_round(
            meet,
            jnp.add,
            (jnp.zeros_like(image), jnp.zeros(len(labels))),
            (text, labels),
            jnp.zeros_like(text),
            chunk=fitting_chunk(chunk, len(labels)),
        )
        # sum_ij dz_ij image_i . text_j, from what is there already
        scale_gradient = ring.sum(jnp.sum(image_gradient * image))
        bias_gradient = ring.sum(jnp.sum(bias_gradient))
        return scale * image_gradient, scale * text_gradient, scale_gradient, bias_gradient

    run = ring.on_each_device(on_device, split="bb--b", returns="bb--")
    share = gradient / pairs
    image, text, scale, bias = (share * x for x in run(*kept))
    return image, text, scale, bias, None


_loss.defvjp(_forward, _backward)
