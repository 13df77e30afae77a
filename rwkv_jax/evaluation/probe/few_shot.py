"""The probe on a few pictures a class, drawn several times.

The strength of the penalty is searched for each draw as in search.py, on as many validation
pictures a class as there are shots, but no more than 4 (so Zhou et al. 2022, "Learning to Prompt
for Vision-Language Models", draw theirs). Unlike the whole probe nothing is fitted again on these,
or the shots would not be what they are called. The classifier of the best strength is judged on the
whole test part.

Draws and penalties are one batch: every (draw, penalty) is a problem of the same shape, with rows
up to the greatest number of shots and no share for those beyond its own.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from rwkv_jax.evaluation.probe import fit, lbfgs
from rwkv_jax.evaluation.probe.examples import Examples, draw_shots
from rwkv_jax.evaluation.probe.judge import Judge
from rwkv_jax.evaluation.probe.losses import softmax_loss
from rwkv_jax.evaluation.probe.rows import Rows
from rwkv_jax.evaluation.probe.search import ROUNDS, STRENGTHS, search

MOST_VALIDATION_SHOTS = 4
MOST_FOR_MOMENTS = 20_000  # rows behind the preconditioner, which need not be exact


def few_shot(
    train: Examples,
    validation: Examples,
    test: Examples,
    *,
    classes: int,
    shots: Sequence[int],
    seeds: Sequence[int],
    judge: Judge,
) -> dict[int, list[float]]:
    """By the number of shots, what each seed's classifier is judged on `test`.

    Args:
      train: the pool that shots are drawn from; with classes, not several labels a row.
      validation: the pool that validation pictures are drawn from.
      test: judged on whole.
      classes: how many there are; one without a row in the draw has weights all the same.
      shots: pictures a class.
      seeds: one draw each; a seed's fewer shots are among its more.
      judge: chooses the penalty, and gives the values.
    """
    mean = train.features.mean(axis=0, dtype=np.float64).astype(np.float32)
    moments = _moments(train.features[:: -(-len(train) // MOST_FOR_MOMENTS)], mean)
    capacity = len(draw_shots(train.targets, max(shots), np.random.default_rng(0)))
    found: dict[int, list[float]] = {}
    for count in shots:
        drawn, held_out = [], []
        for seed in seeds:
            rows = draw_shots(train.targets, count, np.random.default_rng([seed, 0]))
            drawn.append(_problem(train.take(rows), mean, capacity))
            few = min(count, MOST_VALIDATION_SHOTS)
            rows = draw_shots(validation.targets, few, np.random.default_rng([seed, 1]))
            held_out.append(validation.take(rows))
        weights = _search(drawn, held_out, moments, mean, classes, judge)
        found[count] = [judge(_scores(each, test.features, mean), test.targets) for each in weights]
    return found


def _moments(
    features: Float32[np.ndarray, "n D"], mean: Float32[np.ndarray, " D"]
) -> Float[np.ndarray, "E E"]:
    centred = np.pad(features - mean, ((0, 0), (0, 1)), constant_values=1)
    return centred.T @ centred / len(centred)


def _problem(
    examples: Examples, mean: Float32[np.ndarray, " D"], capacity: int
) -> tuple[Rows, int]:
    n, missing = len(examples), capacity - len(examples)
    x = np.pad(examples.features - mean, ((0, missing), (0, 1)))
    x[:n, -1] = 1
    labels = np.pad(examples.targets.astype(np.int32), (0, missing))
    shares = np.pad(np.full(n, 1 / n, np.float32), (0, missing))
    return Rows(*map(jnp.asarray, (x.T, labels, shares))), n


def _scores(
    weights: Float32[np.ndarray, "C E"],
    features: Float32[np.ndarray, "n D"],
    mean: Float32[np.ndarray, " D"],
) -> Float32[np.ndarray, "n C"]:
    return (features - mean) @ weights[:, :-1].T + weights[:, -1]


def _search(
    drawn: list[tuple[Rows, int]],
    held_out: list[Examples],
    moments: Float[np.ndarray, "E E"],
    mean: Float32[np.ndarray, " D"],
    classes: int,
    judge: Judge,
) -> list[Float32[np.ndarray, "C E"]]:
    """Each draw's classifier with the strength that is best on what was held out for it."""
    searches = [search() for _ in drawn]
    asked = [next(each) for each in searches]
    solved: list[dict[int, np.ndarray]] = [{} for _ in drawn]
    peaks: list[int] = []
    for _ in range(ROUNDS):
        pairs = [(draw, place) for draw, places in enumerate(asked) for place in places]
        nothing = np.zeros((classes, len(moments)), np.float32)
        starts = [_nearest(solved[draw], place, nothing) for draw, place in pairs]
        penalties = [STRENGTHS[place] / drawn[draw][1] for draw, place in pairs]
        # one program for the first round and the later ones
        room = fit.MEMORY // fit.fit_bytes(drawn[0][0].x.shape[1], len(moments), classes)
        size = max(1, min(2 * len(drawn), room))
        for i in range(0, len(pairs), size):
            some = pairs[i : i + size]
            # the last pair again and again where pairs are missing
            chosen = [min(i + j, len(pairs) - 1) for j in range(size)]
            rows = jax.tree.map(
                lambda *leaves: np.stack(leaves), *[drawn[pairs[j][0]][0] for j in chosen]
            )
            factors = [lbfgs.preconditioner(moments, classes, penalties[j]) for j in chosen]
            weights = np.asarray(
                _solve(
                    rows,
                    np.stack(factors),
                    np.array([penalties[j] for j in chosen], np.float32),
                    np.stack([starts[j] for j in chosen]),
                )
            )
            for (draw, place), each in zip(some, weights, strict=False):
                solved[draw][place] = each
        for draw, places in enumerate(asked):
            values = [
                judge(
                    _scores(solved[draw][place], held_out[draw].features, mean),
                    held_out[draw].targets,
                )
                for place in places
            ]
            try:
                asked[draw] = searches[draw].send(values)
            except StopIteration as end:
                peaks.append(end.value)
    return [weights[peak] for weights, peak in zip(solved, peaks, strict=True)]


def _nearest(solved: dict[int, np.ndarray], place: int, nothing: np.ndarray) -> np.ndarray:
    if not solved:
        return nothing
    return solved[min(solved, key=lambda known: abs(known - place))]


@jax.jit
def _solve(
    rows: Rows,
    factors: Float32[Array, "B E E"],
    penalties: Float32[Array, " B"],
    weights: Float32[Array, "B C E"],
) -> Float32[Array, "B C E"]:
    def one(rows: Rows, factor: Array, penalty: Array, start: Array) -> Array:
        arguments = (rows, factor[None], penalty[None])
        state = lbfgs.begin(*arguments, start[None], loss=softmax_loss)
        limits = (jnp.int32(fit.MOST_STEPS), jnp.float32(fit.TOLERANCE), jnp.int32(0))
        return lbfgs.run(*arguments, state, *limits, loss=softmax_loss).weights[0]

    return jax.vmap(one)(rows, factors, penalties, weights)
