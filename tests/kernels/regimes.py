"""Inputs and what the judge says of them, for all six decay regimes at once."""

import functools

import float64_loop
import numpy as np
from float64_loop import REGIMES

# (B, T, H, N): T in {1, 2, 3, 7, 49, 77, 196, 257}, N in {4, 64, 80}, and one batch, one head.
CASES = (
    (1, 1, 1, 80),
    (1, 2, 2, 64),
    (2, 3, 1, 4),
    (1, 7, 2, 80),
    (1, 49, 2, 80),
    (1, 77, 2, 64),
    (1, 196, 1, 80),
    (1, 257, 1, 4),
)
NAMES = ("y", "r", "k", "v", "w", "u", "state")


@functools.cache
def stacked(shape):
    """Inputs by name, one leading axis over the regimes."""
    each = [float64_loop.inputs(*shape, regime, seed=i) for i, regime in enumerate(REGIMES)]
    return {name: np.stack([x[name] for x in each]) for name in each[0]}


@functools.cache
def judged_bi(shape):
    """y and the gradients of r, k, v, w, u, one leading axis over the regimes."""
    x = stacked(shape)
    expected = []
    for i in range(len(REGIMES)):
        y, gradients = float64_loop.bi_wkv(*(x[name][i] for name in "rkvwu"), g=x["g"][i])
        expected.append((y, *gradients))
    return list(zip(*expected, strict=True))


@functools.cache
def judged_causal(shape):
    """y, the final state and the gradients of r, k, v, w, u and the initial state."""
    x = stacked(shape)
    names = ("r", "k", "v", "w", "u", "state", "g", "dstate")
    expected = []
    for i in range(len(REGIMES)):
        outputs, gradients = float64_loop.wkv(*(x[name][i] for name in names))
        expected.append((*outputs, *gradients))
    return list(zip(*expected, strict=True))


def assert_close(results, expected, names, tolerance):
    """Relative to the largest element of each array, in each regime."""
    for name, got, want in zip(names, results, expected, strict=True):
        for i, regime in enumerate(REGIMES):
            scale = max(np.abs(want[i]).max(), 1e-6)
            error = np.abs(np.asarray(got[i], np.float64) - want[i]).max() / scale
            assert error < tolerance, f"{name}, decays {regime}: {error:.1e} of the maximum"
