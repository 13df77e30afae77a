"""Run on eight devices: losses of a sigmoid run on several meshes, forms and micro-batches."""

import json

import jax
from mesh_losses import batch_of
from on_many_devices import collectives
from tiny import TINY

from rwkv_jax.config import load_config, override
from rwkv_jax.training.setup import Setup, set_up

# No drop path, whose keys follow the micro-batches.
SIGMOID = (
    *("--batch-size=16", "--model.image.drop-path=0", "--loss.kind=sigmoid", "--loss.chunk=2"),
    *("--model.logit-bias=-10", "--model.logit-scale=2.3026"),
)
RUNS = {
    "one device, full": ((1, 1, 1), ("--loss.form=full",)),
    "one device, ring, micro-batches": ((1, 1, 1), ("--loss.form=ring", "--micro-batches=4")),
    "data, ring, micro-batches": ((8, 1, 1), ("--loss.form=ring", "--micro-batches=2")),
    "all axes, ring, micro-batches": ((2, 2, 2), ("--loss.form=ring", "--micro-batches=2")),
}


def setup_of(mesh: tuple[int, int, int], overrides: tuple[str, ...]) -> Setup:
    data, fsdp, tensor = mesh
    axes = (f"--mesh.data={data}", f"--mesh.fsdp={fsdp}", f"--mesh.tensor={tensor}")
    config = override(load_config(TINY), [*SIGMOID, *axes, *overrides])
    return set_up(config, jax.devices()[: data * fsdp * tensor])


def main() -> None:
    found = {}
    for name, (mesh, overrides) in RUNS.items():
        setup = setup_of(mesh, overrides)
        state = setup.initialise(jax.random.key(0))
        metrics = []
        for seed in range(3):
            state, of_step = setup.step(state, batch_of(setup, seed))
            names = ("loss", "gradient_norm", "logit_scale", "logit_bias")
            metrics += [float(of_step[f"train/{metric}"]) for metric in names]
        lowered = setup.step.lower(setup.state_like, setup.batch_like)
        found[name] = {"metrics": metrics, "collectives": collectives(lowered.compile())}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
