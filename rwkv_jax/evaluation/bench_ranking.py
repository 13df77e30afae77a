"""Time and memory of ranks in blocks: `python -m rwkv_jax.evaluation.bench_ranking`.

Random features of 640 numbers; each query's right candidate is drawn near to it, so that ranks
spread as a trained model's do. numpy by the rule (float64, chunks of queries) runs on the first
1,024 queries of the same problem in the same run; its time is scaled up, and its ranks must be the
same.
"""

import argparse
import os
import resource
import time
from pathlib import Path

import jax
import numpy as np

from rwkv_jax.evaluation import metrics, ranking
from rwkv_jax.evaluation.features import unit_length
from rwkv_jax.files import write_atomically
from rwkv_jax.host_memory import keep_freed_memory

WIDTH = 640
NOISE = 8.0  # length of the noise between a query and its right candidate, which has length 1
CHECKED = 1024


def peak_bytes() -> int:
    """The most memory that this process has held, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def problem(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Candidates, and a query for each."""
    rng = np.random.default_rng(0)
    candidates = np.empty((count, WIDTH), np.float32)
    queries = np.empty_like(candidates)
    for i in range(0, count, CHECKED):
        rows = slice(i, min(i + CHECKED, count))
        drawn = unit_length(rng.standard_normal((rows.stop - i, WIDTH), np.float32))
        noise = unit_length(rng.standard_normal(drawn.shape, np.float32))
        candidates[rows], queries[rows] = drawn, unit_length(drawn + NOISE * noise)
    return queries, candidates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="a Markdown file")
    parser.add_argument("--count", type=int, default=100_000, help="queries, and candidates")
    arguments = parser.parse_args()
    keep_freed_memory()
    count = arguments.count
    queries, candidates = problem(count)
    numbers = np.arange(count)
    before = peak_bytes()

    started = time.perf_counter()
    checked = metrics.best_positive_rank(
        ranking.similarity(queries[:CHECKED], candidates), numbers[:CHECKED, None] == numbers
    )
    rule = (time.perf_counter() - started) * count / len(checked)
    rule_memory = peak_bytes() - before

    started = time.perf_counter()
    found = ranking.ranks(queries, numbers, candidates, numbers)
    blocks = time.perf_counter() - started
    assert np.array_equal(found[:CHECKED], checked), "blocks and the rule disagree"

    device = jax.local_devices()[0]
    block = ranking.QUERIES * ranking.CANDIDATES
    features = 4 * WIDTH * (ranking.QUERIES + ranking.CANDIDATES)
    # two blocks wait at once; of the program's own, what the compiler says
    on_device = ranking.block_temporary_bytes(WIDTH) + 2 * (features + block // 8)
    dense = (8 + 4 + 2) * block + 2 * features
    report = f"""# Ranks in blocks

Written by `make bench-retrieval` on {device.device_kind} ({os.cpu_count()} cores of a shared
server), jax {jax.__version__}, numpy {np.__version__}.

{count:,} queries, {count:,} candidates, {WIDTH} numbers each: **{blocks:.0f} s**,
{2 * WIDTH * count**2 / blocks / 1e9:.0f} GFLOP/s. By the rule in numpy, float64:
{rule:.0f} s ({CHECKED:,} queries measured, the time scaled up). The ranks of these are equal.
R@1 {metrics.recall_at_k(found, 1):.1%}, R@10 {metrics.recall_at_k(found, 10):.1%}, median rank
{np.median(found):.0f}, mean rank {found.mean():.0f}.

Memory: the process held {before / 2**30:.2f} GiB with the features (2 x
{4 * WIDTH * count / 2**30:.2f} GiB), {peak_bytes() / 2**30:.2f} GiB at its peak (the rule's chunk
of {CHECKED:,} x {count:,} had added {rule_memory / 2**30:.2f} GiB by then).

1,000,000 x 1,000,000: beside the features (2 x {4e6 * WIDTH / 2**30:.2f} GiB on the host) a block
of {ranking.QUERIES:,} x {ranking.CANDIDATES:,} takes {on_device / 2**30:.2f} GiB on the device
(what the compiled program asks for, features, packed bits). On the host it takes at most
{dense / 2**30:.2f} GiB, where a block is computed again whole; ranks and limits take 40 bytes a
query. At this run's rate the products would take {blocks * (1e6 / count) ** 2 / 3600:.1f} h here;
an accelerator with 50 TFLOP/s in float32 needs {2 * WIDTH * 1e12 / 50e12:.0f} s.
"""
    print(report)
    if arguments.out:
        write_atomically(arguments.out, report)


if __name__ == "__main__":
    main()
