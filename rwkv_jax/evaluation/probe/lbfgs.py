"""L-BFGS for many linear classifiers on the same rows at once, one for each penalty.

Minimises, for each penalty lambda_l,

    f_l(W, b) = 1/n sum_i a_i loss(W x_i + b, y_i)  +  lambda_l / (2 n) |W|^2,     n = sum_i a_i

which is scikit-learn's objective with C = 1 / lambda, divided by C n; b is not penalised. Three
things are unlike a textbook's L-BFGS:

* An iteration costs two products with the rows whatever its line search tries: the scores are
  linear in W, so along a direction they are S + t S', and a trial is elementwise.
* It runs in coordinates in which the Hessian is near a multiple of the identity. With the rows
  centred and G = V diag(g) V^T their second moments, the Hessian is about c G (x) (classes) +
  lambda/n, so W = U diag(c g + lambda/n)^(-1/2) V^T is solved for U. c = ... 
* Penalties are rows of the same products: [L C, D] x [D, n].
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from rwkv_jax.evaluation.probe.losses import Loss

MEMORY = 10
TRIALS = 12


class Rows(NamedTuple):
    x: Float32[Array, "D n"]
    targets: Float32[Array, "C n"]
    weights: Float32[Array, " n"]  # sums to 1
    vectors: Float32[Array, "D D"]
    moments: Float32[Array, " D"]


class _State(NamedTuple):
    u: Array
    scores: Array
    gradient: Array
    value: Array
    steps_s: Array
    steps_y: Array
    rho: Array
    gamma: Array
    count: Array
    done: Array
    stalls: Array
    trials: Array


def product(a: Array, b: Array) -> Array:
    return jax.lax.dot_general(
        a, b, (((a.ndim - 1,), (0,)), ((), ())), precision=jax.lax.Precision.HIGHEST
    )


def _dot(a: Array, b: Array) -> Array:
    return jnp.sum(a * b, axis=(-2, -1))


@functools.partial(jax.jit, static_argnames=("loss", "curvature", "max_steps", "tolerance", "memory"))
def minimise(rows, start, penalties, *, loss, curvature, max_steps, tolerance, memory=MEMORY):
    D = rows.x.shape[0]
    scale = jax.lax.rsqrt(curvature * rows.moments + penalties[:, None])[:, None, :]  # [L,1,D]
    bias_scale = curvature ** -0.5
    ridge = (penalties[:, None, None] * scale**2)

    def weights_of(u):
        return product(u[..., :D] * scale, rows.vectors.T), u[..., D] * bias_scale

    def scores_of(u):
        w, b = weights_of(u)
        return product(w, rows.x) + b[..., None]

    def gradient_of(residuals, u):
        r = residuals * rows.weights
        g = jax.lax.dot_general(r, rows.x, (((2,), (1,)), ((), ())), precision=jax.lax.Precision.HIGHEST)
        g = product(g, rows.vectors) * scale + ridge * u[..., :D]
        return jnp.concatenate([g, r.sum(-1)[..., None] * bias_scale], -1)

    def penalty_of(u):
        return _dot(ridge * u[..., :D], u[..., :D]) / 2

    def direction(state):
        q = -state.gradient
        alphas = []
        for i in range(memory):  # newest is index 0
            alpha = state.rho[i] * _dot(state.steps_s[i], q)
            q = q - alpha[:, None, None] * state.steps_y[i]
            alphas.append(alpha)
        q = q * state.gamma[:, None, None]
        for i in reversed(range(memory)):
            beta = state.rho[i] * _dot(state.steps_y[i], q)
            q = q + (alphas[i] - beta)[:, None, None] * state.steps_s[i]
        return q

    def step(state):
        d = direction(state)
        slope0 = _dot(state.gradient, d)
        sd = scores_of(d)
        pen0 = penalty_of(state.u)
        pen1 = _dot(ridge * state.u[..., :D], d[..., :D])
        pen2 = _dot(ridge * d[..., :D], d[..., :D])

        def trial(t):
            losses, residuals = loss(state.scores + t[:, None, None] * sd, rows.targets)
            value = losses @ rows.weights + pen0 + t * pen1 + t**2 / 2 * pen2
            slope = jnp.einsum("lcn,lcn,n->l", residuals, sd, rows.weights) + pen1 + t * pen2
            return value, slope, residuals

        def search(carry):
            t, low, high, slow, shigh, ok, k, *_ = carry
            value, slope, residuals = trial(t)
            fits = (jnp.abs(slope) <= 0.9 * jnp.abs(slope0)) & (value <= state.value * (1 + 1e-6))
            ok_new = ok | fits | state.done
            up = (slope < 0) & (value <= state.value * (1+1e-6))
            low2, slow2 = jnp.where(up, t, low), jnp.where(up, slope, slow)
            high2, shigh2 = jnp.where(up, high, t), jnp.where(up, shigh, slope)
            # secant
            inner = low2 - slow2 * (high2 - low2) / (shigh2 - slow2)
            width = high2 - low2
            inner = jnp.where((shigh2 > 0) & jnp.isfinite(inner), jnp.clip(inner, low2 + 0.1 * width, high2 - 0.1 * width), low2 + width / 2)
            t_new = jnp.where(jnp.isfinite(high2), inner, 3 * t)
            t = jnp.where(ok_new, t, t_new)
            return t, low2, high2, slow2, shigh2, ok_new, k + 1, value, slope, residuals

        L = penalties.shape[0]
        zero = jnp.zeros(L)
        first = jnp.where(state.count == 0, jnp.minimum(1.0, 1.0), 1.0) + zero
        carry = (first, zero, zero + jnp.inf, slope0, zero, state.done, jnp.int32(0), zero, zero, jnp.zeros_like(sd))
        carry = search(carry)
        carry = jax.lax.while_loop(lambda c: (~jnp.all(c[5])) & (c[6] < TRIALS), search, carry)
        t, _, _, _, _, ok, k, value, slope, residuals = carry
        move = ok & ~state.done
        t = jnp.where(move, t, 0)
        s = t[:, None, None] * d
        u = state.u + s
        gradient = gradient_of(residuals, u)
        gradient = jnp.where(move[:, None, None], gradient, state.gradient)
        y = gradient - state.gradient
        sy = _dot(s, y)
        good = sy > 0
        rho = jnp.where(good, 1 / jnp.where(good, sy, 1), 0)
        gamma = jnp.where(good, sy / jnp.maximum(_dot(y, y), 1e-30), state.gamma)
        drop = value_drop = state.value - jnp.where(move, value, state.value)
        small = (-slope0 / 2 <= tolerance * state.value)
        stalls = jnp.where(small, state.stalls + 1, 0)
        done = state.done | ~ok | (stalls >= 1)
        return _State(
            u, state.scores + t[:, None, None] * sd, gradient, jnp.where(move, value, state.value),
            jnp.concatenate([s[None], state.steps_s[:-1]]),
            jnp.concatenate([y[None], state.steps_y[:-1]]),
            jnp.concatenate([rho[None], state.rho[:-1]]),
            gamma, state.count + (~state.done), done, stalls, state.trials + k,
        )

    L, C = penalties.shape[0], rows.targets.shape[0]
    scores = scores_of(start)
    losses, residuals = loss(scores, rows.targets)
    value = losses @ rows.weights + penalty_of(start)
    hist = jnp.zeros((memory, L, C, D + 1))
    state = _State(start, scores, gradient_of(residuals, start), value, hist, hist,
                   jnp.zeros((memory, L)), jnp.ones(L), jnp.zeros(L, jnp.int32), jnp.zeros(L, bool), jnp.zeros(L, jnp.int32), jnp.int32(0))
    state = jax.lax.while_loop(lambda s: (~jnp.all(s.done)) & (jnp.max(s.count) < max_steps), step, state)
    w, b = weights_of(state.u)
    return state.u, w, b, state.value, state.count, state.trials, jnp.max(jnp.abs(state.gradient), axis=(1,2))
