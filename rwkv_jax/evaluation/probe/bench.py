"""The probe's search beside scikit-learn's: `python -m rwkv_jax.evaluation.probe.bench`.

60,000 rows of 640 features (fashion_mnist.features), ten classes; a fifth of the rows is held out
to choose the strength of the penalty, which is searched from coarse to fine, and the last fit is on
all rows, to a tenth of the search's tolerance: what `linear_probe` does. scikit-learn fits the same
strengths one after another, from 0, with its L-BFGS, float32 rows, 1,000 steps and its own
tolerance, as CLIP's authors used it.

scikit-learn's fits take long. They run from the strongest penalty to the weakest for as long as
--minutes allows; the others are counted with the time of the last that ran. On a machine with other
guests run it under `taskset -c 0`: threads that spin while they wait for a core count as work.
"""

import argparse
import os
import platform
import time
from importlib import metadata
from pathlib import Path

import jax
import numpy as np
from sklearn.linear_model import LogisticRegression

from rwkv_jax.evaluation import linear_probe
from rwkv_jax.evaluation.probe import fashion_mnist, fit
from rwkv_jax.evaluation.probe.examples import Examples, hold_out
from rwkv_jax.evaluation.probe.judge import JUDGES
from rwkv_jax.files import write_atomically
from rwkv_jax.host_memory import keep_freed_memory

VALIDATION_SHARE = 0.2


def objective(examples: Examples, weights: np.ndarray, bias: np.ndarray, strength: float) -> float:
    """Mean loss and penalty, in float64."""
    scores = examples.features.astype(np.float64) @ weights.T.astype(np.float64) + bias
    scores -= scores.max(axis=1, keepdims=True)
    own = scores[np.arange(len(scores)), examples.targets]
    penalty = strength / 2 / len(scores) * (weights.astype(np.float64) ** 2).sum()
    return float(np.mean(np.log(np.exp(scores).sum(axis=1)) - own) + penalty)


class Clock:
    """Seconds on the wall, and of all cores together, since it was made."""

    def __init__(self) -> None:
        self._started = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """(wall, cores)."""
        wall, cores = self._started
        return time.perf_counter() - wall, time.process_time() - cores


def theirs(examples: Examples, strength: float) -> tuple[tuple[float, float], LogisticRegression]:
    """(seconds on the wall and of cores, scikit-learn's fit)."""
    model = LogisticRegression(C=1 / strength, max_iter=fit.MOST_STEPS)
    clock = Clock()
    model.fit(examples.features, examples.targets)
    return clock.read(), model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="a Markdown file")
    parser.add_argument("--minutes", type=float, default=15, help="for scikit-learn's search")
    parser.add_argument("--rows", type=int, default=60_000)
    arguments = parser.parse_args()
    keep_freed_memory()
    pictures, labels = fashion_mnist.read("train")
    rows = Examples(fashion_mnist.features(pictures), labels.astype(np.int64))
    train, held_out = hold_out(rows.take(np.arange(arguments.rows)), VALIDATION_SHARE, 0)

    clock = Clock()
    found = linear_probe.search_and_fit(train, held_out, 10, JUDGES["accuracy"])
    ours = clock.read()
    print(f"ours: {ours[0]:.1f} s, {ours[1]:.1f} s of cores", flush=True)

    deadline = time.perf_counter() + 60 * arguments.minutes
    measured: dict[float, tuple[tuple[float, float], LogisticRegression]] = {}
    refit, _ = theirs(train.join(held_out), found.strength)
    print(f"scikit-learn: last fit, {refit[0]:.1f} s, {refit[1]:.1f} s of cores", flush=True)
    for strength in sorted(found.searched, reverse=True):
        if time.perf_counter() < deadline or not measured:
            measured[strength] = theirs(train, strength)
            (wall, cores), model = measured[strength]
            print(
                f"scikit-learn: lambda {strength:.3g}, {wall:.1f} s, {cores:.1f} s of cores, "
                f"{model.n_iter_[0]} steps",
                flush=True,
            )

    weakest = min(measured)
    total = np.array(refit)
    lines = []
    for strength in sorted(found.searched, reverse=True):
        mine = found.searched[strength]
        validation = JUDGES["accuracy"](mine.scores(held_out.features), held_out.targets)
        value = objective(train, mine.weights, mine.bias, strength)
        row = f"| {strength:.3g} | {mine.steps} | {value:.6f} | {validation:.2%} |"
        (wall, cores), model = measured[max(strength, weakest)]
        total += (wall, cores)
        if strength in measured:
            value = objective(train, model.coef_, model.intercept_, strength)
            validation = model.score(held_out.features, held_out.targets)
            row += f" {model.n_iter_[0]} | {value:.6f} | {validation:.2%} | {wall:.0f} |"
        else:
            row += f" | | | ({wall:.0f}) |"
        lines.append(row)
    report = f"""# The linear probe's search beside scikit-learn's

Written by `make bench-probe` on {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores of a
shared server ({platform.machine()}), both rivals on the same;
jax {jax.__version__}, scikit-learn {metadata.version("scikit-learn")}, numpy {np.__version__}.
Fashion-MNIST behind a fixed random layer: {len(train) + len(held_out):,} rows of
{rows.features.shape[1]} features, 10 classes. {len(train):,} rows are searched on,
{len(held_out):,} choose, all are fitted last.

| whole search and last fit | wall | all cores together |
|---|---|---|
| ours, compiling included | {ours[0]:.0f} s | {ours[1]:.0f} s |
| scikit-learn, {len(measured)} of its {len(found.searched)} fits measured | {total[0]:.0f} s | \
{total[1]:.0f} s |
| times as fast | **{total[0] / ours[0]:.1f}** | **{total[1] / ours[1]:.1f}** |

Chosen: lambda = {found.strength:.3g}. Times in brackets were not measured: a fit that did not come
to run is counted with the time of the weakest penalty that did, which takes no more steps. Both
stop at {fit.MOST_STEPS} steps or at their own tolerance: ours when the next step promises less
than {fit.SEARCH_TOLERANCE:.0e} of the objective ({fit.TOLERANCE:.0e} in the last fit),
scikit-learn's at a gradient of 1e-4. The objective, on the rows that are searched on, is evaluated
in float64.

| lambda | our steps | objective | validation | scikit-learn: steps | objective | validation | s |
|---|---|---|---|---|---|---|---|
""" + "\n".join(lines)
    print(report)
    if arguments.out:
        write_atomically(arguments.out, report + "\n")


if __name__ == "__main__":
    main()
