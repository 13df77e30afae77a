"""Gradient accumulation that is exact for a contrastive loss, whose pairs meet across the batch.

Adding up the gradients of smaller batches would be another loss: each pair would meet fewer others.
Here all parts are embedded first, keeping features alone; the loss over the whole batch gives the
gradient of every feature; then each part is embedded again, and its share of that gradient taken
back through the towers.

Source: GradCache (Gao et al. 2021, arXiv 2101.06983).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

Params = dict[str, Any]
Batch = dict[str, Array]
Features = Any  # a tree of [B, D]


def micro_batch(batch: Batch, count: int, index: Array | int) -> Batch:
    """Rows `index`, `index + count`, `index + 2 * count`, ... of a batch.

    Strided, not cut: a device that holds consecutive rows of the batch then holds its part of every
    micro-batch, and nothing has to be moved. Which rows they are does not depend on the devices.
    """
    return jax.tree.map(
        # [B, ...] -> [B / count, count, ...] -> [B / count, ...]
        lambda x: jax.lax.dynamic_index_in_dim(
            x.reshape(-1, count, *x.shape[1:]), index, axis=1, keepdims=False
        ),
        batch,
    )


def micro_batch_key(key: PRNGKeyArray, index: Array | int) -> PRNGKeyArray:
    """Drop path's key for a micro-batch: the same in both passes."""
    return jax.random.fold_in(key, index)


def whole_batch(parts: Features) -> Features:
    """[count, B / count, D] -> [B, D]: the rows in the order of the batch again."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), parts)


def in_parts(features: Features, count: int) -> Features:
    """[B, D] -> [count, B / count, D], as `micro_batch` takes them; undoes `whole_batch`."""
    return jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), features)


def loss_and_gradients(
    embed: Callable[[Params, Batch, PRNGKeyArray], Features],
    loss: Callable[[Params, Features], tuple[Float[Array, ""], Any]],
    params: Params,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    count: int,
) -> tuple[tuple[Float[Array, ""], Any], Params]:
    """The loss over the whole batch, what is beside it, and its gradient, part by part.

    Holds the activations of B / count pairs.

    Costs one more forward pass than the batch at once, and a second copy of the gradients.

    Args:
        embed: of some rows of a batch, to features of as many rows; a row's features must depend on
            no other row.
        loss: of the features of the whole batch, and something to look at, as
            `jax.value_and_grad(has_aux=True)` has it; it may use parameters of its own.
        key: for drop path; micro-batch i gets `micro_batch_key(key, i)`.
        count: micro-batches; divides B.

    Raises:
        ValueError: `count` does not divide B.
    """
    rows = len(jax.tree.leaves(batch)[0])
    if rows % count:
        raise ValueError(f"micro_batches = {count} does not divide a batch of {rows}")
    indices = jnp.arange(count)

    def embed_part(params: Params, index: Array) -> Features:
        return embed(params, micro_batch(batch, count, index), micro_batch_key(key, index))

    _, parts = jax.lax.scan(lambda _, index: (None, embed_part(params, index)), None, indices)
    value, (gradients, of_features) = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(
        params, whole_batch(parts)
    )

    def add_part(gradients: Params, part: tuple[Array, Features]) -> tuple[Params, None]:
        index, of_features = part
        _, pull_back = jax.vjp(lambda params: embed_part(params, index), params)
        return jax.tree.map(jnp.add, gradients, *pull_back(of_features)), None

    gradients, _ = jax.lax.scan(add_part, gradients, (indices, in_parts(of_features, count)))
    return value, gradients
