"""How fast RWKV-CLIP B/32 trains and encodes images on this machine's accelerator, by WKV.

What is timed is the step of configs/rwkv_clip_b32_yfcc15m.py as train.py builds it, on one device:
its precision (bfloat16 but on a CPU), remat policy, AdamW and loss, with another number of pairs.
The batch is random and made on the device once, so nothing waits for data. Memory is by XLA's own
account of the compiled program: an allocator's peak is that of all programs before it as well.

python -m rwkv_jax.bench_training [--batch N] [--[no-]unroll] [--implementations ...] [--out FILE]
"""

import argparse
import contextlib
import dataclasses
import functools
import logging
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import tqdm
from jaxtyping import Array

import rwkv_kernels
from rwkv_jax.config import RunConfig, load_config
from rwkv_jax.data.preprocess import normalise
from rwkv_jax.models.block import one_by_one
from rwkv_jax.models.params import bind, model_graphdef
from rwkv_jax.training.setup import Setup, set_up
from rwkv_kernels.bench import machine, save

CONFIG = "configs/rwkv_clip_b32_yfcc15m.py"
BATCH = 512  # a GPU's share of the recipe: 4,096 pairs over 8
WARM_UP = 2  # steps that are not timed


@dataclasses.dataclass(frozen=True)
class Measured:
    """One WKV's figures.

    Attributes:
        step: seconds of each timed step.
        encode: seconds of each timed pass of the image encoder over as many images.
        temporaries: bytes that the step asks for beside its arguments and results.
        held: bytes, with arguments and results.
        loss: after the last step.
    """

    step: list[float]
    encode: list[float]
    temporaries: int
    held: int
    loss: float


def random_batch(config: RunConfig, setup: Setup) -> dict[str, Array]:
    """Noise as images, any ids as texts."""
    like = setup.batch_like
    image_key, text_key = jax.random.split(jax.random.key(0))
    rows = jnp.arange(config.batch_size, dtype=jnp.int32)
    batch = {
        "image": jax.random.bits(image_key, like["image"].shape, jnp.uint8),
        "text": jax.random.randint(
            text_key, like["text"].shape, 0, config.model.text.vocab_size, jnp.int32
        ),
        "concept": rows,
        "kind": jnp.zeros_like(rows),
    }
    return jax.device_put(batch, {name: x.sharding for name, x in like.items()})


def recipe(batch: int, *, unroll: bool | None) -> RunConfig:
    """B/32's, of so many pairs, with its blocks one by one, in a loop, or as the model has it."""
    config = dataclasses.replace(load_config(CONFIG), batch_size=batch)
    towers = {
        name: dataclasses.replace(getattr(config.model, name), unroll=unroll)
        for name in ("image", "text")
    }
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **towers))


def compile_step(
    config: RunConfig, device: jax.Device, implementation: str | None
) -> jax.stages.Compiled:
    """The training step."""
    setup = set_up(config, [device])  # anew: a step that was traced keeps its WKV
    with _wkv(implementation), jax.set_mesh(setup.mesh):
        step = setup.step.lower(setup.state_like, setup.batch_like)
    return step.compile()


def compile_encoder(
    config: RunConfig, device: jax.Device, implementation: str | None
) -> jax.stages.Compiled:
    """The image encoder of (parameters, uint8 images)."""
    setup = set_up(config, [device])
    graphdef = model_graphdef(config.model, setup.dtype)

    def encode(params: Any, images: Array) -> Array:
        return bind(graphdef, params).encode_image(normalise(images))

    with _wkv(implementation), jax.set_mesh(setup.mesh):
        encoder = jax.jit(encode).lower(setup.state_like.params, setup.batch_like["image"])
    return encoder.compile()


def _wkv(implementation: str | None) -> contextlib.AbstractContextManager:
    """No configuration names an implementation, because the table's choice is right; here is where
    `rwkv_jax.wkv` takes it from.
    """
    named = functools.partial(rwkv_kernels.bi_wkv6, implementation=implementation)
    return mock.patch.object(rwkv_kernels, "bi_wkv6", named)


def measure(
    config: RunConfig,
    setup: Setup,
    implementation: str | None,
    steps: int,
    say: Callable[[str], None],
) -> Measured:
    """Times of one implementation; `setup` gives the first state; its step is not used."""
    began = time.perf_counter()
    device = setup.mesh.devices.flat[0]
    step = compile_step(config, device, implementation)
    encode = compile_encoder(config, device, implementation)
    say(f"{_name(implementation)}: compiled in {time.perf_counter() - began:.0f} s")
    state, batch = setup.initialise(jax.random.key(config.seed)), random_batch(config, setup)
    times: dict[str, list[float]] = {"step": [], "encode": []}
    metrics = {}
    for _ in range(WARM_UP + steps):
        began = time.perf_counter()
        state, metrics = jax.block_until_ready(step(state, batch))
        times["step"].append(time.perf_counter() - began)
    for _ in range(WARM_UP + steps):
        began = time.perf_counter()
        jax.block_until_ready(encode(state.params, batch["image"]))
        times["encode"].append(time.perf_counter() - began)
    memory = step.memory_analysis()
    if memory is None:
        raise RuntimeError(f"XLA keeps no account of memory on {jax.default_backend()}")
    # What is donated is both argument and output.
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Measured(
        step=times["step"][WARM_UP:],
        encode=times["encode"][WARM_UP:],
        temporaries=memory.temp_size_in_bytes,
        held=memory.argument_size_in_bytes + results + memory.temp_size_in_bytes,
        loss=float(metrics["train/loss"]),
    )


def row(implementation: str | None, setup: Setup, measured: Measured) -> str:
    """One line of the table."""
    work, seconds = setup.work, statistics.median(measured.step)
    flops = work.flops / seconds
    share = "" if work.chip is None else f" ({flops / work.chip.flops:.1%})"
    cells = (
        _name(implementation),
        f"{1e3 * seconds:.1f} ({1e3 * min(measured.step):.1f})",
        f"{work.images / seconds:,.0f}",
        f"{flops / 1e12:.3g}{share}",
        f"{measured.temporaries / 2**20:,.0f}",
        f"{measured.held / 2**20:,.0f}",
        f"{measured.loss:.4f}",
        f"{work.images / statistics.median(measured.encode):,.0f}",
    )
    return f"| {' | '.join(cells)} |"


def _name(implementation: str | None) -> str:
    return "by default" if implementation is None else f"`{implementation}`"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=BATCH, help=f"pairs a step (default: {BATCH})")
    parser.add_argument("--steps", type=int, default=20, help="timed steps (default: 20)")
    parser.add_argument(
        "--unroll",
        action=argparse.BooleanOptionalAction,
        help="blocks one by one, without a loop (default: on a GPU)",
    )
    parser.add_argument(
        "--implementations",
        nargs="+",
        choices=rwkv_kernels.IMPLEMENTATIONS,
        default=[None, "chunked"],
        help="of the WKV (default: the model's own choice, and chunked)",
    )
    parser.add_argument("--out", type=Path, help="also write the table to this Markdown file")
    options = parser.parse_args()
    if options.steps < 1:
        parser.error(f"--steps must be at least 1, got {options.steps}")
    logging.basicConfig(format="%(message)s")
    logging.getLogger("rwkv_kernels").setLevel(logging.INFO)  # says what the default is
    config = recipe(options.batch, unroll=options.unroll)
    setup = set_up(config, jax.devices()[:1])
    how = "one by one" if one_by_one(options.unroll) else "in a loop"
    lines = [
        "# Training speed\n",
        f"RWKV-CLIP B/32, {options.batch} pairs a step, {setup.dtype.name}, remat"
        f" `{config.model.image.remat}`, blocks {how},"
        f" {machine()}. Medians of {options.steps} steps, each waited"
        " for; in brackets the quickest. FLOP/s are the model's, in brackets their share of the"
        " chip's published peak. Memory of the step in MiB, by XLA's account. Loss after"
        f" {WARM_UP + options.steps} steps of one random batch. Encoded: images, forward alone.\n",
        "| WKV | ms a step | pairs/s | TFLOP/s | temporaries | held at once | loss | encoded/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for implementation in tqdm.tqdm(options.implementations, unit="WKV"):
        try:
            found = measure(config, setup, implementation, options.steps, tqdm.tqdm.write)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            tqdm.tqdm.write(str(error).splitlines()[0])
            lines.append(f"| {_name(implementation)} | does not fit |{' |' * 6}")
        else:
            lines.append(row(implementation, setup, found))
        tqdm.tqdm.write(lines[-1])
        if options.out:  # after each: the next may be refused
            save(options.out, lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
