"""Scaling on paper: what a step costs on TPU slices that are not here, into docs/scaling.md.

Each row is `train.py --dry_run`: the step that training runs, compiled and counted. Needs the extra
`aot`, and minutes a row: python -m rwkv_jax.bench_scaling [--out FILE.md]
"""

import argparse
import dataclasses
from pathlib import Path

import jax
import tqdm

from rwkv_jax.config import load_config, override
from rwkv_jax.files import write_atomically
from rwkv_jax.training.dry_run import DoesNotFitError, DryRun, dry_run

B32, B16 = "configs/rwkv_clip_b32_yfcc15m.py", "configs/rwkv_clip_b16_yfcc15m.py"
UNROLLED = ("--model.image.unroll", "True", "--model.text.unroll", "True")
LARGE = ("--batch-size", "32768", "--loss.form", "ring")


@dataclasses.dataclass(frozen=True)
class Case:
    """A row: what is given to `train.py --dry_run`.

    Attributes:
        what: is said of the model besides its name.
    """

    config: str
    topology: str
    overrides: tuple[str, ...]
    what: str = ""

    @property
    def command(self) -> str:
        rest = " ".join(self.overrides)
        return f"--config {self.config} --topology {self.topology} {rest}".rstrip()


CASES = (
    Case(B32, "v5e:16x16", LARGE),
    Case(B32, "v5e:4x4", (*LARGE, "--micro-batches", "8")),
    Case(B32, "v5e:4x4", ()),  # the paper's recipe: 4,096 pairs, 256 a chip
    Case(B32, "v5e:4x4", UNROLLED, ", without a loop"),
    Case(B32, "v6e:16x16", LARGE),
    Case(B32, "v6e:16x16", (*LARGE, "--mesh.fsdp", "16"), ", fsdp 16"),
    Case(B16, "v5e:16x16", LARGE),
)

HEAD = """# Scaling, on paper

By `make bench-scaling`: the training step, compiled for slices of TPUs by their own compiler and
counted (`python train.py --dry_run --topology ...`; jax {jax}). None of it was run on a TPU. "At
least" is a floor by published peaks (`rwkv_jax/chips.py`): all matrix products, all traffic with
memory, all messages, each alone at its peak. A step takes at least the largest of the three; the
best MFU is what that would be. Memory traffic counts every operation's operands and results outside
the fast memory. Messages by the ring algorithms (`rwkv_jax/hlo/collectives.py`); what each waits
before its first byte arrives is not in the floor.

| model | topology | pairs a step (a chip) | loss | parts | products | memory | messages \
| bound by | best MFU | images/s | memory a chip |
|---|---|---|---|---|---|---|---|---|---|---|---|
"""


def row(case: Case, run: DryRun) -> str:
    """One line of the table."""
    config, bound, chip = run.config, run.bound, run.topology.chip
    if bound is None or chip is None or run.best_mfu is None:
        raise ValueError(f"{case.topology} has no published peaks")
    n = len(run.topology.devices)
    cells = (
        _model(case),
        run.topology.name,
        f"{config.batch_size:,} ({config.batch_size // n})",
        config.loss.form,
        config.micro_batches,
        f"{bound.products * 1e3:.1f} ms",
        f"{bound.memory * 1e3:.1f} ms",
        f"{bound.network * 1e3:.1f} ms",
        bound.name,
        f"{run.best_mfu:.0%}",
        f"{config.batch_size / bound.seconds:,.0f}",
        f"{run.memory.total / 1e9:.1f} of {chip.memory / 1e9:.0f} GB",
    )
    return f"| {' | '.join(map(str, cells))} |"


def messages(case: Case, run: DryRun) -> list[str]:
    """What a chip sends in a step of this row, by kind."""
    lines = []
    for kind in sorted({x.kind for x in run.cost.collectives}):
        found = [(x, count) for x, count in run.cost.collectives.items() if x.kind == kind]
        largest = max(x.payload for x, _ in found)
        cells = (
            f"{_model(case)}, {run.topology.name}, {run.config.batch_size:,} pairs",
            kind,
            sum(count for _, count in found),
            f"{run.cost.sent_bytes(kind) / 1e6:,.1f} MB",
            f"{largest / 1e6:,.1f} MB",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def _model(case: Case) -> str:
    return f"{'B/16' if case.config == B16 else 'B/32'}{case.what}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="also write the tables to this Markdown file")
    parser.add_argument("--only", type=int, action="append", help="rows, from 0; default: all")
    options = parser.parse_args()
    rows, sent, commands = [], [], []
    text = ""
    for i in tqdm.tqdm(options.only or range(len(CASES)), unit="program"):
        case = CASES[i]
        commands.append(f"- `{case.command}`")
        try:
            run = dry_run(override(load_config(case.config), case.overrides), case.topology)
        except DoesNotFitError as error:
            commands[-1] += f": {error}"
        else:
            rows.append(row(case, run))
            sent += messages(case, run)
        text = "\n".join(
            [
                HEAD.format(jax=jax.__version__) + "\n".join(rows),
                "\n## What a chip sends in a step\n",
                "| | collective | runs | sent | largest array |\n|---|---|---|---|---|",
                *sent,
                "\n## The rows\n",
                *commands,
                "",
            ]
        )
        if options.out:  # after each row: a row takes minutes
            write_atomically(options.out, text)
    print(text)


if __name__ == "__main__":
    main()
