"""L-BFGS for linear classifiers on the same rows, one for each penalty, all at once.

For each penalty p it minimises over W [C, D] and b [C]

    f(W, b) = sum_i a_i loss(W x_i + b, y_i) + p / 2 |W|^2,        sum_i a_i = 1

Unlike optax.lbfgs, or a textbook's:

* The scores are linear in W, so along a direction they are S + t dS and a trial step is elementwise
  work. An iteration costs two products with the rows, whatever its line search tries.
* The penalties are rows of these products: [L C, D + 1] x [D + 1, n].
* It starts from a real guess of the Hessian. With uniform answers the Hessian's blocks on the
  diagonal are M = (1/C)(1 - 1/C) sum_i a_i x_i x_i^T + p I (Boehning 1992, "Multinomial logistic
  regression algorithm"), so it solves for U, with W = U P^T and P P^T = M^-1. On raw features,
  whose second moments spread over six decades, that is what makes 1,000 steps enough.

Source: Nocedal and Wright, Numerical Optimization, algorithms 7.4 and 7.5.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32

from rwkv_jax.evaluation.probe.losses import Loss
from rwkv_jax.evaluation.probe.rows import Rows

MEMORY = 10  # pairs (step, change of gradient) that are remembered; scikit-learn's and SciPy's
TRIALS = 12  # of a line search; it ends a fit that cannot descend any more in float32
CURVATURE = 0.9  # |slope| after a step is at most so much of that before (strong Wolfe condition)
NOISE = 1e-6  # relative error of a loss in float32


class State(NamedTuple):
    """Where the fits stand; the leading axis of all is the penalties'.

    Attributes:
      weights: W and b.
      scores: W x + b.
      gradient: by U.
      value: the objective.
      steps: the last steps of U, newest first.
      changes: the changes of the gradient along them.
      curvatures: 1 / (step . change); 0 where none is remembered.
      scale: of the inverse Hessian, step . change / |change|^2.
      taken: steps so far.
      done: has converged, or cannot descend.
    """

    weights: Float32[Array, "L C E"]
    scores: Float32[Array, "L C n"]
    gradient: Float32[Array, "L C E"]
    value: Float32[Array, " L"]
    steps: Float32[Array, "L m C E"]
    changes: Float32[Array, "L m C E"]
    curvatures: Float32[Array, "L m"]
    scale: Float32[Array, " L"]
    taken: Int32[Array, " L"]
    done: Bool[Array, " L"]


def preconditioner(
    moments: Float[np.ndarray, "E E"], classes: int, penalty: float
) -> Float32[np.ndarray, "E E"]:
    """P of the head of this file, in float64 on the host: a Cholesky factor and its inverse.

    Args:
      moments: of the rows, the ones last.
      classes: C; 2 for independent sigmoids, whose curvature at 0 is 1/4.
      penalty: p.
    """
    hessian = (1 / classes) * (1 - 1 / classes) * moments.astype(np.float64)
    diagonal = np.einsum("ii->i", hessian)
    # float32 knows moments to 1e-7 of the largest, and with fewer rows than D some are 0
    floor = 1e-7 * max(float(diagonal.max()), 1e-12)
    diagonal += floor
    diagonal[:-1] += penalty
    return np.linalg.inv(np.linalg.cholesky(hessian)).T.astype(np.float32)


def _product(a: Array, b: Array) -> Array:
    # accelerators would round the operands to bfloat16 or TF32 without being told
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _dot(a: Float32[Array, "*L C E"], b: Float32[Array, "*L C E"]) -> Float32[Array, "*L"]:
    return jnp.sum(a * b, axis=(-2, -1))


def _spread(values: Float32[Array, " L"]) -> Float32[Array, "L 1 1"]:
    return values[:, None, None]


def _ridge(penalties: Float32[Array, " L"], E: int) -> Float32[Array, "L 1 E"]:
    return _spread(penalties) * (jnp.arange(E) < E - 1)  # biases, the last, go free


def _gradient(
    rows: Rows,
    factors: Float32[Array, "L E E"],
    ridge: Float32[Array, "L 1 E"],
    weights: Float32[Array, "L C E"],
    residuals: Float32[Array, "L C n"],
) -> Float32[Array, "L C E"]:
    by_weights = _product(residuals * rows.shares, rows.x.T) + ridge * weights
    return _product(by_weights, factors)


@functools.partial(jax.jit, static_argnames="loss")
def begin(
    rows: Rows,
    factors: Float32[Array, "L E E"],
    penalties: Float32[Array, " L"],
    weights: Float32[Array, "L C E"],
    *,
    loss: Loss,
) -> State:
    """The state before the first step, from given weights."""
    L, C, E = weights.shape
    ridge = _ridge(penalties, E)
    scores = _product(weights, rows.x)
    losses, residuals = loss(scores, rows.targets)
    return State(
        weights=weights,
        scores=scores,
        gradient=_gradient(rows, factors, ridge, weights, residuals),
        value=losses @ rows.shares + _dot(ridge * weights, weights) / 2,
        steps=jnp.zeros((L, MEMORY, C, E)),
        changes=jnp.zeros((L, MEMORY, C, E)),
        curvatures=jnp.zeros((L, MEMORY)),
        scale=jnp.ones(L),
        taken=jnp.zeros(L, jnp.int32),
        done=jnp.zeros(L, bool),
    )


@functools.partial(jax.jit, static_argnames="loss")
def run(
    rows: Rows,
    factors: Float32[Array, "L E E"],
    penalties: Float32[Array, " L"],
    state: State,
    most_steps: Int32[Array, ""],
    tolerance: Float32[Array, ""],
    few: Int32[Array, ""],
    *,
    loss: Loss,
) -> State:
    """Steps until at most `few` fits are not done, or one has taken `most_steps`.

    A fit is done when the decrease that its quadratic model promises is at most `tolerance` of the
    objective, and of what the fit has gained over saying nothing: under a strong penalty that is
    little, but all that the answers hang on.
    """
    ridge = _ridge(penalties, state.weights.shape[-1])
    nothing = loss(jnp.zeros_like(state.scores[0]), rows.targets)[0] @ rows.shares

    def step(state: State) -> State:
        direction = _direction(state)
        slope = _dot(state.gradient, direction)
        move = _product(direction, jnp.swapaxes(factors, 1, 2))  # of the weights
        move_scores = _product(move, rows.x)
        size, residuals, value, found = _line_search(
            rows, ridge, state, move, move_scores, slope, loss
        )
        moves = found & ~state.done
        size = jnp.where(moves, size, 0)
        weights = state.weights + _spread(size) * move
        gradient = _gradient(rows, factors, ridge, weights, residuals)
        gradient = jnp.where(_spread(moves), gradient, state.gradient)
        new_step, change = _spread(size) * direction, gradient - state.gradient
        curvature = _dot(new_step, change)
        convex = curvature > 0
        safe = jnp.where(convex, curvature, 1)
        gain = jnp.minimum(state.value, jnp.maximum(nothing - state.value, 0))
        converged = -slope / 2 <= tolerance * gain

        def remember(old: Array, new: Array) -> Array:
            return jnp.concatenate([new[:, None], old[:, :-1]], axis=1)

        return State(
            weights=weights,
            scores=state.scores + _spread(size) * move_scores,
            gradient=gradient,
            value=jnp.where(moves, value, state.value),
            steps=remember(state.steps, new_step),
            changes=remember(state.changes, change),
            curvatures=remember(state.curvatures, jnp.where(convex, 1 / safe, 0)),
            scale=jnp.where(
                convex, curvature / jnp.where(convex, _dot(change, change), 1), state.scale
            ),
            taken=state.taken + moves,
            done=state.done | ~found | converged,
        )

    def goes_on(state: State) -> Bool[Array, ""]:
        return (jnp.sum(~state.done) > few) & (jnp.max(state.taken) < most_steps)

    return jax.lax.while_loop(goes_on, step, state)


def _direction(state: State) -> Float32[Array, "L C E"]:
    """-H g by the two loops of algorithm 7.4."""
    history = jax.tree.map(
        lambda a: jnp.moveaxis(a, 1, 0), (state.steps, state.changes, state.curvatures)
    )

    def backwards(q: Array, pair: Any) -> tuple[Array, Array]:
        step, change, curvature = pair
        alpha = curvature * _dot(step, q)
        return q - _spread(alpha) * change, alpha

    def forwards(q: Array, pair: Any) -> tuple[Array, None]:
        (step, change, curvature), alpha = pair
        return q + _spread(alpha - curvature * _dot(change, q)) * step, None

    q, alphas = jax.lax.scan(backwards, -state.gradient, history)
    q, _ = jax.lax.scan(forwards, q * _spread(state.scale), (history, alphas), reverse=True)
    return q


def _line_search(
    rows: Rows,
    ridge: Float32[Array, "L 1 E"],
    state: State,
    move: Float32[Array, "L C E"],
    move_scores: Float32[Array, "L C n"],
    slope: Float32[Array, " L"],
    loss: Loss,
) -> tuple[Array, Array, Array, Array]:
    """A step size for each fit, 1 where that will do: (size, residuals, value, whether found).

    The objective is convex along the direction, so the sign of its slope says on which side of the
    minimum a trial lies; trials are secants of the slope, kept inside the bracket.
    """
    constant = _dot(ridge * state.weights, state.weights) / 2
    linear = _dot(ridge * state.weights, move)
    quadratic = _dot(ridge * move, move)
    limit = state.value + NOISE * jnp.abs(state.value)

    def trial(carry: Any) -> Any:
        size, (low, low_slope), (high, high_slope), found, count, *_ = carry
        losses, residuals = loss(state.scores + _spread(size) * move_scores, rows.targets)
        value = losses @ rows.shares + constant + size * linear + size**2 / 2 * quadratic
        here = jnp.sum(residuals * move_scores * rows.shares, axis=(1, 2))
        here += linear + size * quadratic
        lower = value <= limit  # False for NaN as well
        fits = lower & (jnp.abs(here) <= CURVATURE * jnp.abs(slope))
        found = found | fits
        before = lower & (here < 0)  # of the minimum
        low, low_slope = jnp.where(before, size, low), jnp.where(before, here, low_slope)
        high, high_slope = jnp.where(before, high, size), jnp.where(before, high_slope, here)
        width = high - low
        secant = low - low_slope * width / (high_slope - low_slope)
        inside = jnp.clip(secant, low + width / 10, high - width / 10)
        inside = jnp.where((high_slope > 0) & jnp.isfinite(secant), inside, low + width / 2)
        following = jnp.where(jnp.isfinite(high), inside, 3 * size)
        size = jnp.where(found, size, following)
        bracket = (low, low_slope), (high, high_slope)
        return size, *bracket, found, count + 1, residuals, value

    def goes_on(carry: Any) -> Bool[Array, ""]:
        return jnp.any(~carry[3]) & (carry[4] < TRIALS)

    zeros = jnp.zeros_like(slope)
    first = (zeros + 1, (zeros, slope), (zeros + jnp.inf, zeros), state.done, jnp.int32(0))
    size, _, _, found, _, residuals, value = jax.lax.while_loop(
        goes_on, trial, (*first, jnp.zeros_like(move_scores), zeros)
    )
    return size, residuals, value, found
