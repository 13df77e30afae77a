"""Which kernels the time of a training step goes by, on a GPU: by kind, and the longest one by one.

The step is the one that `bench_training` times. Kernels are by JAX's own profiler, which sees those
within CUDA graphs, too; what goes by between them is the rest of a step's time.

python -m rwkv_jax.bench_step_kernels [--batch N] [--[no-]unroll] [--longest N] [--out FILE]
"""

import argparse
import collections
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax

from rwkv_jax.bench_training import BATCH, WARM_UP, compile_step, random_batch, recipe
from rwkv_jax.models.block import one_by_one
from rwkv_jax.training.setup import set_up
from rwkv_kernels.bench import machine, save

STEPS = 4  # that are recorded

# By name, as XLA and Mosaic give them; the first that is found in a name. cuBLAS calls its own
# nvjet and xmma.
KINDS = (
    ("the WKV", r"^wkv6_"),
    ("interpolations", r"^ddlerp"),
    ("head norms", r"^head_norm"),
    ("logits of decays", r"^decay_logits"),
    ("matrix products", r"nvjet|xmma|gemm|cutlass|cublas"),
    ("copies", r"(?i)memcpy|memset|dynamic_(update_)?slice_fusion|^copy|wrapped_slice"),
    ("sums, and what is made along with them", r"reduce"),
    ("element by element", r"^(loop|wrapped|input)_|fusion"),
    ("all else", r""),
)


class Total(NamedTuple):
    """Of a step.

    Attributes:
        kernels: how many run.
        time: ms.
    """

    kernels: float
    time: float


def by_kind(events: Iterable[tuple[str, float]], steps: int) -> dict[str, Total]:
    """events: name and nanoseconds of each kernel that ran in so many steps."""
    return _totals(events, steps, lambda name: next(k for k, of in KINDS if re.search(of, name)))


def by_name(events: Iterable[tuple[str, float]], steps: int) -> dict[str, Total]:
    """As `by_kind`, by the kernels' own names; the longest first."""
    return _totals(events, steps, lambda name: name)


def _totals(
    events: Iterable[tuple[str, float]], steps: int, key: Callable[[str], str]
) -> dict[str, Total]:
    found: dict[str, list[float]] = collections.defaultdict(list)
    for name, nanoseconds in events:
        found[key(name)].append(nanoseconds)
    totals = {name: Total(len(x) / steps, sum(x) / steps / 1e6) for name, x in found.items()}
    return dict(sorted(totals.items(), key=lambda item: -item[1].time))


def recorded(run: Callable[[], None]) -> list[tuple[str, float]]:
    """Name and nanoseconds of each kernel that a GPU ran.

    Raises:
        RuntimeError: the profiler saw none.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = options.host_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            run()
        (file,) = Path(folder).rglob("*.xplane.pb")
        events = list(_of_gpus(jax.profiler.ProfileData.from_file(str(file))))
    if not events:
        raise RuntimeError(
            f"the profiler saw no kernel on {jax.devices()[0].device_kind!r}: it takes a GPU"
        )
    return events


def _of_gpus(profile: jax.profiler.ProfileData) -> Iterator[tuple[str, float]]:
    for plane in profile.planes:
        if plane.name.startswith("/device:GPU"):
            for line in plane.lines:
                if line.name.startswith("Stream"):
                    yield from ((event.name, event.duration_ns) for event in line.events)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=BATCH, help=f"pairs a step (default: {BATCH})")
    parser.add_argument(
        "--unroll",
        action=argparse.BooleanOptionalAction,
        help="blocks one by one, without a loop (default: on a GPU)",
    )
    parser.add_argument("--longest", type=int, default=20, help="kernels by name (default: 20)")
    parser.add_argument("--out", type=Path, help="also write the tables to this Markdown file")
    options = parser.parse_args()
    config = recipe(options.batch, unroll=options.unroll)
    setup = set_up(config, jax.devices()[:1])
    step = compile_step(config, jax.devices()[0], None)
    state, batch = setup.initialise(jax.random.key(config.seed)), random_batch(config, setup)
    for _ in range(WARM_UP):
        state, _ = jax.block_until_ready(step(state, batch))
    began = time.perf_counter()
    for _ in range(STEPS):
        state, metrics = step(state, batch)
    jax.block_until_ready(metrics)
    passed = 1e3 * (time.perf_counter() - began) / STEPS

    def run() -> None:
        nonlocal state
        for _ in range(STEPS):
            state, metrics = step(state, batch)
        jax.block_until_ready(metrics)

    events = recorded(run)
    kinds = by_kind(events, STEPS)
    time_of_kernels = sum(x.time for x in kinds.values())
    how = "one by one" if one_by_one(options.unroll) else "in a loop"
    lines = [
        "# Kernels of a training step\n",
        f"RWKV-CLIP B/32, {options.batch} pairs a step, {setup.dtype.name}, remat"
        f" `{config.model.image.remat}`, blocks {how},"
        f" {machine()}. Means of {STEPS} steps that are not waited for: {passed:.1f} ms a step, of"
        f" which kernels take {time_of_kernels:.1f} ms.\n",
        *_table("kind", kinds),
        "",
        *_table("longest", dict(list(by_name(events, STEPS).items())[: options.longest])),
    ]
    print("\n".join(lines))
    if options.out:
        save(options.out, lines)


def _table(title: str, totals: dict[str, Total]) -> list[str]:
    rows = (f"| {name} | {x.kernels:,.0f} | {x.time:.2f} |" for name, x in totals.items())
    return [f"| {title} | kernels | ms |", "|---|---|---|", *rows]


if __name__ == "__main__":
    main()
