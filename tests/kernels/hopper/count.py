"""How much the Hopper kernels have to do, counted on the machine: no GPU needed.

Of instructions (PTX) that a warp executes; a multiprocessor begins four a cycle at most, of four
warps. Written by `make bench-gpu-static`: python -m hopper.count --out FILE.md
"""

import argparse
from pathlib import Path

import jax
import tqdm

from hopper.launch import on_machine
from rwkv_kernels.bench import arguments, save
from rwkv_kernels.bench_gpu_static import Case
from rwkv_kernels.gpu.plan import TILE
from rwkv_kernels.pallas_gpu import bi_wkv6, wkv6
from rwkv_kernels.shapes import WkvShape

SHAPES = ((1024, 49, 8, 80), (1024, 77, 10, 64), (1024, 196, 8, 80), (16, 1024, 8, 80))
CASES = (
    *(Case(shape) for shape in SHAPES),
    Case(SHAPES[-1], causal=True),
    *(Case(shape, dtype="float32") for shape in SHAPES[:3]),
)


def count(case: Case) -> list[str]:
    """Rows of the table, a kernel each. One head is played, as if it were one of the shape's."""
    _, T, _, N = case.shape
    r, k, v, w, u, g = arguments(WkvShape("", 1, T, 1, N), case.dtype)
    tiles, tiling = -(-T // TILE), case.tiling

    def function(*inputs: jax.Array) -> jax.Array:
        if case.causal:
            return wkv6(*inputs, None, tiling=tiling)[0]
        return bi_wkv6(*inputs, tiling=tiling)

    with on_machine() as ran:
        _, pullback = jax.vjp(function, r, k, v, w, u)
        forward = len(ran)
        pullback(g)
    rows = []
    for i, run in enumerate(ran):
        done = run.executed

        def of(*kinds: str, done=done) -> float:
            return sum(number for opcode, number in done.items() if opcode.startswith(kinds))

        numbers = (
            done.total(), of("ex2"), of("ld.shared", "st.shared", "ldmatrix", "stmatrix"),
            of("wgmma.mma"), of("mma"), of("movmatrix"), of("bar"), *run.turns,
        )  # fmt: skip
        # A warp has a quarter of a tile's rows.
        *each, turns, least = [f"{number / (4 * tiles):,.0f}" for number in numbers]
        when = "forward" if i < forward else "backward"
        cells = (case, f"{run.name}, {when}", *each)
        cells += (f"{turns} / {least}",)
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="also write the table to this Markdown file")
    options = parser.parse_args()
    lines = [
        "# Instructions of the Hopper kernels\n",
        f"PTX that a warp executes for a tile of 64 tokens of a head, jax {jax.__version__}, "
        "counted while the kernels were played on a CPU, with decays of a fresh model, all gentle. "
        "Turns: how often shared memory is asked, and how often it would have to be if no two "
        "words were wanted of a bank.\n",
        "| [B, T, H, N] | kernel | instructions | ex2 | shared memory | wgmma | mma | movmatrix "
        "| barriers | turns / least |",
        "|---" * 10 + "|",
    ]
    for case in tqdm.tqdm(CASES, unit="call"):
        lines += count(case)
    print("\n".join(lines))
    if options.out:
        save(options.out, lines)


if __name__ == "__main__":
    main()
