"""The judge: the WKV and its gradients as numpy loops over time in float64, and inputs to judge by.

The gradients are worked out by hand, so nothing here depends on JAX. `test_float64_loop.py` holds
this file to literals and to finite differences.
"""

import numpy as np

REGIMES = ("typical", "near 0", "near 1", "mixed", "spiky", "strong")


def inputs(B: int, T: int, H: int, N: int, regime: str, seed: int = 0) -> dict[str, np.ndarray]:
    """float32 r, k, v, w [B, T, H, N], u [H, N], g (a gradient of y); states [B, H, N, N]."""
    rng = np.random.default_rng(seed)
    shape = (B, T, H, N)
    w = {
        "typical": lambda: rng.uniform(-6, -0.5, shape),  # decays 0.55 .. 0.998
        "near 0": lambda: rng.uniform(3, 7, shape),  # exp(-20) .. exp(-1100)
        "near 1": lambda: rng.uniform(-16, -10, shape),  # 1 - 5e-5 .. 1 - 1e-7
        "mixed": lambda: rng.choice([-15.0, -8.0, -3.0, -1.0, 1.0, 3.0, 6.0], shape),
        "spiky": lambda: np.where(rng.random(shape) < 0.05, 8.0, -8.0),  # resets: exp(-2981)
        "strong": lambda: rng.uniform(-0.7, 0.5, shape),  # 0.19 .. 0.61, in 64 tokens exp(-60)
    }[regime]()
    arrays = {name: rng.standard_normal(shape) for name in ("r", "k", "v", "g")}
    arrays |= {"w": w, "u": 0.5 * rng.standard_normal((H, N))}
    arrays |= {name: rng.standard_normal((B, H, N, N)) for name in ("state", "dstate")}
    return {name: x.astype(np.float32) for name, x in arrays.items()}


def wkv(r, k, v, w, u, state=None, g=None, dstate=None):
    """Causal: (y, final state), and with g (and dstate) the gradients of r, k, v, w, u and state.

    y_t = r_t S_t + (r_t . u . k_t) v_t,  S_{t+1} = d_t S_t + k_t v_t^T,  d = exp(-exp(w)).
    """
    r, k, v, w, u = (np.asarray(x, np.float64) for x in (r, k, v, w, u))
    B, T, H, N = r.shape
    decay = np.exp(-np.exp(w))
    S = np.zeros((B, H, N, N)) if state is None else np.asarray(state, np.float64)
    states, y = [], np.einsum("bthn,hn,bthn->bth", r, u, k)[..., None] * v
    for t in range(T):
        states.append(S)
        y[:, t] += np.einsum("bhn,bhnm->bhm", r[:, t], S)
        S = decay[:, t, :, :, None] * S + k[:, t, :, :, None] * v[:, t, :, None, :]
    if g is None:
        return y, S

    g = np.asarray(g, np.float64)
    bonus = np.einsum("bthm,bthm->bth", g, v)[..., None]  # the gradient of r . u . k
    dr, dk, du = bonus * u * k, bonus * u * r, (bonus * r * k).sum((0, 1))
    dv = np.einsum("bthn,hn,bthn->bth", r, u, k)[..., None] * g
    dw = np.zeros_like(w)
    dS = np.zeros((B, H, N, N)) if dstate is None else np.asarray(dstate, np.float64)
    for t in reversed(range(T)):
        dr[:, t] += np.einsum("bhnm,bhm->bhn", states[t], g[:, t])
        dk[:, t] += np.einsum("bhnm,bhm->bhn", dS, v[:, t])
        dv[:, t] += np.einsum("bhnm,bhn->bhm", dS, k[:, t])
        dw[:, t] = -np.exp(w[:, t]) * decay[:, t] * (states[t] * dS).sum(-1)
        dS = decay[:, t, :, :, None] * dS + r[:, t, :, :, None] * g[:, t, :, None, :]
    return (y, S), (dr, dk, dv, dw, du, dS)


def bi_wkv(r, k, v, w, u, g=None):
    """Both directions: y, and with g the gradients of r, k, v, w and u."""

    def backwards(x):
        return None if x is None else x[:, ::-1]

    tokens = [backwards(x) for x in (r, k, v, w)]
    no_bonus = np.zeros_like(u)
    if g is None:
        return wkv(r, k, v, w, u)[0] + backwards(wkv(*tokens, no_bonus)[0])
    (y, _), (*forward, du, _) = wkv(r, k, v, w, u, g=g)
    (y_back, _), (*backward, _, _) = wkv(*tokens, no_bonus, g=backwards(g))
    gradients = [a + backwards(b) for a, b in zip(forward, backward, strict=True)]
    return y + backwards(y_back), (*gradients, du)
