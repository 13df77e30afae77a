"""Run on eight devices: losses of three updates on several meshes, and where the parameters lay."""

import json
from typing import Any

import jax
import numpy as np
from tiny import TINY

from rwkv_jax.config import load_config, override
from rwkv_jax.training.setup import Setup, set_up

MESHES = {
    "one": (1, 1, 1),
    "data": (8, 1, 1),
    "fsdp": (1, 8, 1),
    "all": (2, 2, 2),
}


def batch_of(setup: Setup, seed: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    like = setup.batch_like
    host = {
        "image": rng.integers(0, 256, like["image"].shape, np.uint8),
        "text": rng.integers(0, 49408, like["text"].shape, np.int32),
        "concept": rng.integers(0, 4, like["concept"].shape, np.int32),
        "kind": np.zeros(like["kind"].shape, np.int32),
    }
    return {name: jax.device_put(value, like[name].sharding) for name, value in host.items()}


def share_of_a_device(tree: Any) -> float:
    """The part of all numbers of `tree` that the first device holds."""
    leaves = jax.tree.leaves(tree)
    return sum(leaf.addressable_data(0).size for leaf in leaves) / sum(x.size for x in leaves)


def main() -> None:
    found = {}
    for name, (data, fsdp, tensor) in MESHES.items():
        sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
        overrides = [f"--mesh.{axis}={size}" for axis, size in sizes.items()]
        config = override(load_config(TINY), overrides)
        setup = set_up(config, jax.devices()[: data * fsdp * tensor])
        state = setup.initialise(jax.random.key(0))
        losses = []
        for seed in range(3):
            state, metrics = setup.step(state, batch_of(setup, seed))
            losses.append(float(metrics["train/loss"]))
            losses.append(float(metrics["train/gradient_norm"]))
        found[name] = {
            "losses": losses,
            "key": share_of_a_device(state.params["image"]["blocks"]["spatial_mix"]["key"]),
            "params": share_of_a_device(state.params),
            "opt_state": share_of_a_device(state.opt_state),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
