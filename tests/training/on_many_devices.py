"""Run on 64 forced host devices: what rings and micro-batches give, as one line of JSON."""

import functools
import json
import math
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from losses_float64 import sigmoid_float64, softmax_float64

from rwkv_jax.mesh import BATCH_AXES, DATA_AXIS, FSDP_AXIS, TENSOR_AXIS
from rwkv_jax.training.losses import full_sigmoid, full_softmax, ring_sigmoid, ring_softmax
from rwkv_jax.training.micro_batches import loss_and_gradients

B, D = 32, 8
CHUNK = 2
# (data, fsdp, tensor): rings of 2, 4 and 8 over one axis or two, and one beside a tensor axis.
MESHES = {"2": (2, 1, 1), "4, and tensor 2": (2, 2, 2), "8": (4, 2, 1)}


def mesh_of(shape: tuple[int, int, int]) -> Mesh:
    devices = np.asarray(jax.devices()[: math.prod(shape)]).reshape(shape)
    return Mesh(devices, (DATA_AXIS, FSDP_AXIS, TENSOR_AXIS))


def both(softmax, sigmoid):
    """(loss, gradients of features, scale and bias) of either kind, in one program."""

    def mean(loss):
        return lambda *arguments: loss(*arguments).mean

    def run(image, text, scale, bias, labels):
        return (
            jax.value_and_grad(mean(softmax), argnums=(0, 1, 2))(image, text, scale, labels),
            jax.value_and_grad(mean(sigmoid), argnums=(0, 1, 2, 3))(
                image, text, scale, bias, labels
            ),
        )

    return run


def inputs():
    random = np.random.default_rng(0)
    image = random.standard_normal((B, D)).astype(np.float32)
    text = (image + random.standard_normal((B, D))).astype(np.float32)
    labels = random.integers(0, 20, B).astype(np.int32)  # some concepts have several pairs
    return image, text, np.float32(14.3), np.float32(-5.0), labels


def agreement() -> dict[str, list[float]]:
    """Largest differences to the full form: of the losses, and of any gradient as a share of its
    largest number. Then those of the losses to float64."""
    full = jax.jit(both(full_softmax, full_sigmoid))(*inputs())
    image, text, scale, bias, labels = inputs()
    wide = [np.float64(x) for x in (image, text, scale, bias)]
    judged = (
        softmax_float64(*wide[:3], labels),
        sigmoid_float64(*wide, labels),
    )
    ring = both(
        functools.partial(ring_softmax, chunk=CHUNK), functools.partial(ring_sigmoid, chunk=CHUNK)
    )
    found = {}
    for name, shape in MESHES.items():
        mesh = mesh_of(shape)
        split = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
        whole = NamedSharding(mesh, PartitionSpec())
        with jax.set_mesh(mesh):
            step = jax.jit(ring, in_shardings=(split, split, whole, whole, split))
            got = jax.device_get(step(*inputs()))
        found[name] = [
            max(abs(mine[0] - its[0]) / its[0] for mine, its in zip(got, full, strict=True)),
            max(
                np.max(np.abs(mine - its)) / np.max(np.abs(its))
                for mine, its in zip(_gradients(got), _gradients(full), strict=True)
            ),
            max(abs(mine[0] - its) / its for mine, its in zip(got, judged, strict=True)),
        ]
    return {name: [float(x) for x in values] for name, values in found.items()}


def _gradients(results) -> list[np.ndarray]:
    return [np.asarray(x) for _, gradients in results for x in gradients]


def compiled_rings(devices: int) -> jax.stages.Compiled:
    """64 pairs a device in chunks of 16, compiled and not run."""
    ring = both(
        functools.partial(ring_softmax, chunk=16), functools.partial(ring_sigmoid, chunk=16)
    )
    mesh = mesh_of((devices // 4, 4, 1))
    split = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    whole = NamedSharding(mesh, PartitionSpec())
    rows = 64 * devices
    features = jax.ShapeDtypeStruct((rows, 32), jnp.float32, sharding=split)
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
    labels = jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=split)
    with jax.set_mesh(mesh):
        return jax.jit(ring).lower(features, features, number, number, labels).compile()


def collectives(compiled: jax.stages.Compiled) -> list[str]:
    """The kinds of collective operations in a program."""
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    lines = rf"= (?:\(.*?\)|\S+) ({kinds})[-(]"
    return sorted(set(re.findall(lines, compiled.as_text())))


def compiled_micro_batches() -> jax.stages.Compiled:
    """Four micro-batches over eight devices, of a loss that needs no collective of features."""
    mesh = mesh_of((4, 2, 1))
    split = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    whole = NamedSharding(mesh, PartitionSpec())

    def embed(params, batch, key):
        x = batch["image"].reshape(len(batch["image"]), -1) / 255.0  # [B, H, W, 3] -> [B, H W 3]
        return jnp.tanh(x @ params["w"])

    def loss(params, features):
        return jnp.sum(jnp.square(features)), None

    def step(params, batch, key):
        return loss_and_gradients(embed, loss, params, batch, key, count=4)

    params = {"w": jax.ShapeDtypeStruct((8 * 8 * 3, 16), jnp.float32, sharding=whole)}
    batch = {"image": jax.ShapeDtypeStruct((64, 8, 8, 3), jnp.uint8, sharding=split)}
    key = jax.eval_shape(lambda: jax.random.key(0))
    with jax.set_mesh(mesh):
        return jax.jit(step).lower(params, batch, key).compile()


def main() -> None:
    rings = {str(devices): compiled_rings(devices) for devices in (8, 64)}
    found = {
        "agreement": agreement(),
        "ring_bytes": {n: x.memory_analysis().temp_size_in_bytes for n, x in rings.items()},
        "ring_collectives": collectives(rings["64"]),
        "micro_batch_collectives": collectives(compiled_micro_batches()),
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
