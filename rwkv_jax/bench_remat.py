"""What the remat policies cost and save: memory by XLA's account, time by the clock.

Memory is that of RWKV-CLIP B/32's whole training step, compiled for a TPU chip that need not be
there (extra `aot`) and for this machine's CPU; nothing of it is run. Time is measured on this
machine, on a small model; the policies take turns.

python -m rwkv_jax.bench_remat [--device cpu] [--out FILE.md]
"""

import argparse
import dataclasses
import statistics
import time
import typing
from pathlib import Path

import jax
import jax.numpy as jnp
import tqdm

from rwkv_jax.bench_memory import DEVICES, memory_of, training_step
from rwkv_jax.config import DataConfig, RunConfig
from rwkv_jax.data.config import LoaderConfig
from rwkv_jax.evaluation.config import EvalConfig
from rwkv_jax.models import ClipConfig, ImageConfig, TextConfig
from rwkv_jax.models.config import Remat
from rwkv_jax.training.setup import set_up
from rwkv_kernels.bench import machine, save

POLICIES: tuple[Remat, ...] = typing.get_args(Remat)
PAIRS = 128  # of the model below; memory is that of `bench_memory.training_step`
# As wide and deep as configs/emoji_cpu_hour.py, of fewer tokens.
MODEL = ClipConfig(
    ImageConfig(
        image_size=32, patch_size=8, width=128, heads=4, depth=4, hidden_rate=4, drop_path=0.15
    ),
    TextConfig(context_length=20, width=128, heads=4, depth=1, hidden=448),
)


def small_run(remat: Remat) -> RunConfig:
    """A run of the small model in which both towers have this policy."""
    image = dataclasses.replace(MODEL.image, remat=remat)
    text = dataclasses.replace(MODEL.text, remat=remat)
    loader = LoaderConfig(image_size=image.image_size, context_length=text.context_length)
    return RunConfig(
        model=ClipConfig(image, text),
        data=DataConfig("none", "train", loader),
        batch_size=PAIRS,
        steps=1000,
        eval=EvalConfig(),
    )


def seconds(rounds: int) -> dict[Remat, list[float]]:
    """Of the small model's step, `rounds` times a policy, after one that is not timed."""
    steps, states, batch = {}, {}, {}
    for remat in POLICIES:
        setup = set_up(small_run(remat), jax.devices()[:1])
        steps[remat], states[remat] = setup.step, setup.initialise(jax.random.key(0))
        batch = {name: jnp.ones(x.shape, x.dtype) for name, x in setup.batch_like.items()}
    found: dict[Remat, list[float]] = {remat: [] for remat in POLICIES}
    for _ in tqdm.trange(rounds + 1, unit="round"):
        for remat in POLICIES:
            began = time.perf_counter()
            states[remat], metrics = steps[remat](states[remat], batch)
            jax.block_until_ready(metrics)
            found[remat].append(time.perf_counter() - began)
    return {remat: times[1:] for remat, times in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", action="append", choices=DEVICES, help="default: all")
    parser.add_argument("--rounds", type=int, default=15, help="measured rounds (default: 15)")
    parser.add_argument("--out", type=Path, help="also write the tables to this Markdown file")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}")
    lines = [
        "# Remat policies: memory and time\n",
        "What the backward pass computes again of each block (`model.image.remat`,"
        " `model.text.remat`): `none`: nothing; `block`: all but the block's input; `dots`: all but"
        " the results of matrix products of full rank and of the WKV.\n",
        "## Memory\n",
        f"RWKV-CLIP B/32's training step, 256 pairs on one device, compiled by jax"
        f" {jax.__version__}, not run; MiB. Held at once: parameters, optimizer state, batch,"
        " results and temporaries. Matrix products are bfloat16 on a TPU, float32 on a CPU.\n",
        "| device | policy | temporaries | held at once |",
        "|---|---|---|---|",
    ]
    jobs = [(name, remat) for name in options.device or DEVICES for remat in POLICIES]
    for name, remat in tqdm.tqdm(jobs, unit="program"):
        devices = DEVICES[name]()
        step = training_step("--model.image.remat", remat, "--model.text.remat", remat)
        cells = (devices[0].device_kind, f"`{remat}`", *memory_of(step, devices))
        lines.append(f"| {' | '.join(cells)} |")
        tqdm.tqdm.write(lines[-1])
    times = seconds(options.rounds)
    median = {remat: statistics.median(of) for remat, of in times.items()}
    lines += [
        "\n## Time\n",
        f"A small model (width {MODEL.image.width}, {MODEL.image.depth} + {MODEL.text.depth}"
        f" blocks), {PAIRS} pairs a step, float32, {machine()}."
        f" Medians of {options.rounds} rounds in which the policies take turns; in brackets the"
        " quickest.\n",
        "| policy | seconds a step | beside none's |",
        "|---|---|---|",
    ]
    for remat, of in times.items():
        ratio = median[remat] / median["none"]
        lines.append(f"| `{remat}` | {median[remat]:.3f} ({min(of):.3f}) | {ratio:.2f}x |")
    print("\n".join(lines))
    if options.out:
        save(options.out, lines)


if __name__ == "__main__":
    main()
