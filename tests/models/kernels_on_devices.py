"""Run on eight forced host devices: what surrounds the WKV under meshes, as one line of JSON.

Interpreters of kernels know one device, so each part is computed by their formula: what is seen
here is how arrays and gradients are split and put together.
"""

import functools
import json
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from rwkv_jax.mesh import AXES
from rwkv_jax.wkv import bi_wkv6, ddlerp_kernel, decay_kernel, head_norm_kernel
from rwkv_kernels import ddlerp, decay_logits, head_norm

MESHES = ((8, 1, 1), (2, 2, 2), (1, 1, 4))  # data, fsdp, tensor
USES, RANK, D = 2, 4, 16
HEADS, EPS = 4, 1e-5


def formula(x, xx, z, maa, up):
    parts = np.split(np.arange(USES * RANK), USES)
    return tuple(x + xx * (maa[a] + z[..., of_a] @ up[a]) for a, of_a in enumerate(parts))


def norm(x, gate, scale, bias, heads, eps):
    by_head = x.reshape(*x.shape[:-1], heads, -1)  # [B, T, D] -> [B, T, H, N]
    centred = by_head - by_head.mean(-1, keepdims=True)
    z = centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)
    return (z.reshape(x.shape) * scale + bias) * jax.nn.silu(gate)  # [B, T, H, N] -> [B, T, D]


def logits(z, up, bias):
    return bias + z @ up


def both(function, given):
    found, pullback = jax.vjp(function, *given)
    return found, pullback(jax.tree.map(jnp.cos, found))


def errors(function, shapes, kernel) -> dict[str, float]:
    """Of each mesh; kernel: gives what the model takes under the mesh that is set."""
    keys = jax.random.split(jax.random.key(0), len(shapes))
    given = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
    alone = jax.jit(lambda given: both(function, given))(given)
    found = {}
    for shape in MESHES:
        devices = np.asarray(jax.devices()[: np.prod(shape)]).reshape(shape)
        with jax.set_mesh(jax.sharding.Mesh(devices, AXES)):
            here = kernel()
            split = jax.jit(lambda given, here=here: both(here, given))(given)
        pairs = zip(jax.tree.leaves(split), jax.tree.leaves(alone), strict=True)
        found[str(shape)] = max(float(np.abs(np.subtract(x, y)).max()) for x, y in pairs)
    return found


def on_other_meshes() -> dict[str, float]:
    """The WKV and its gradients where a mesh has other axes, or somebody splits one already."""
    token = (8, 7, 4, 8)
    keys = jax.random.split(jax.random.key(0), 5)
    given = [jax.random.normal(key, token) for key in keys[:4]]
    given.append(jax.random.normal(keys[4], token[2:]))
    alone = jax.jit(lambda given: both(bi_wkv6, given))(given)
    devices = np.asarray(jax.devices())
    cube = Mesh(devices.reshape(2, 2, 2), AXES)
    batch, whole = PartitionSpec("data"), PartitionSpec()
    split = {"in_specs": (*4 * (batch,), whole), "out_specs": batch, "check_vma": False}
    cases = {
        "data alone": (Mesh(devices[:4], ("data",)), bi_wkv6),
        "other names": (Mesh(devices[:4], ("x",)), bi_wkv6),
        "split by another": (cube, jax.shard_map(bi_wkv6, mesh=cube, **split)),
        "one axis split": (cube, jax.shard_map(bi_wkv6, mesh=cube, axis_names={"data"}, **split)),
    }
    found = {}
    for name, (mesh, wkv) in cases.items():
        with jax.set_mesh(mesh):
            here = jax.jit(lambda given, wkv=wkv: both(wkv, given))(given)
        pairs = zip(jax.tree.leaves(here), jax.tree.leaves(alone), strict=True)
        found[name] = max(float(jnp.abs(x - y).max() / jnp.abs(y).max()) for x, y in pairs)
    return found


def main() -> None:
    token, of_z = (8, 3, D), (8, 3, USES * RANK)
    shapes = (token, token, of_z, (USES, D), (USES, RANK, D))
    interpolations = errors(
        formula, shapes, lambda: ddlerp_kernel(token, jnp.float32, (USES, RANK, D))
    )
    norms = errors(
        functools.partial(norm, heads=HEADS, eps=EPS), (token, token, (D,), (D,)),
        lambda: head_norm_kernel(token, jnp.float32, HEADS, EPS),
    )  # fmt: skip
    of_decays = (*token[:2], RANK), (RANK, D), (D,)
    decays = errors(
        logits, of_decays, lambda: decay_kernel(of_decays[0], jnp.float32, of_decays[1])
    )
    found = {"interpolations": interpolations, "norms": norms, "decays": decays}
    found["wkv"] = on_other_meshes()
    print(json.dumps(found))


if __name__ == "__main__":
    with (
        mock.patch.object(ddlerp, "unservable", return_value=()),
        mock.patch.object(ddlerp, "ddlerp", formula),
        mock.patch.object(decay_logits, "unservable", return_value=()),
        mock.patch.object(decay_logits, "decay_logits", logits),
        mock.patch.object(head_norm, "unservable", return_value=()),
        mock.patch.object(head_norm, "gated_head_norm", norm),
    ):
        main()
