"""The judge is judged: by hand-worked literals, by the sum over pairs, by finite differences."""

import chex
import numpy as np
from float64_loop import bi_wkv, inputs, wkv

# N = 2, since a single channel would hide a transposed state: r reads the first channel, k writes
# it; v's second channel is 0. Decays 1/2, 1/4, 1/8 (w = log(-log d)), bonus 10.
R = np.array([1.0, 2.0, 3.0])
K = np.array([5.0, 7.0, 11.0])
V = np.array([1.0, 10.0, 100.0])
W = np.log(-np.log(np.array([0.5, 0.25, 0.125])))


def _tokens(x, second=0.0):
    return np.stack([x, np.full(3, second)], axis=-1).reshape(1, 3, 1, 2)


def _example():
    return _tokens(R), _tokens(K), _tokens(V), _tokens(W, 0.0), np.array([[10.0, 10.0]])


def test_causal_literal():
    y, state = wkv(*_example())
    # y0 = 1*10*5*1; y1 = 2*(5*1) + 2*10*7*10; y2 = 3*(7*10 + d1*5*1) + 3*10*11*100
    chex.assert_trees_all_close(y[0, :, 0, 0], np.array([50.0, 1410.0, 33213.75]), rtol=1e-14)
    # S3 = 11*100 + d2*(7*10 + d1*5*1), at (key 0, value 0) alone
    expected = np.array([[1100 + 0.125 * (70 + 0.25 * 5), 0.0], [0.0, 0.0]])
    chex.assert_trees_all_close(state[0, 0], expected, rtol=1e-14)


def test_state_is_key_by_value():
    r, k, v, w, u = _example()
    state = np.array([[0.0, 4.0], [0.0, 0.0]])[None, None]  # key 0 holds a value in channel 1
    y, _ = wkv(r, k, v, w, u, state)
    # y_t reads it after the decays of the tokens before: 1*4, 2*4/2, 3*4/8
    chex.assert_trees_all_close(y[0, :, 0, 1], np.array([4.0, 4.0, 1.5]), rtol=1e-14)


def test_bidirectional_literal():
    y = bi_wkv(*_example())
    # to the causal ones come: 1*(7*10 + d1*11*100), 2*(11*100), nothing
    expected = np.array([50 + 70 + 275.0, 1410 + 2200.0, 33213.75])
    chex.assert_trees_all_close(y[0, :, 0, 0], expected, rtol=1e-14)


def test_bidirectional_is_the_sum_over_pairs():
    x = inputs(1, 5, 1, 4, "mixed")
    r, k, v, w, u = (x[name].astype(np.float64) for name in "rkvwu")
    decay = np.exp(-np.exp(w))[0, :, 0]
    expected = np.zeros((5, 4))
    for t in range(5):
        for j in range(5):
            between = decay[min(t, j) + 1 : max(t, j)].prod(axis=0) if t != j else u[0]
            expected[t] += (r[0, t, 0] * between * k[0, j, 0]).sum() * v[0, j, 0]
    chex.assert_trees_all_close(bi_wkv(r, k, v, w, u)[0, :, 0], expected, rtol=1e-12)


def test_gradients_are_finite_differences():
    x = {name: a.astype(np.float64) for name, a in inputs(1, 4, 1, 4, "typical").items()}
    names = ("r", "k", "v", "w", "u", "state")
    arguments = [x[name] for name in names]
    _, gradients = wkv(*arguments, g=x["g"], dstate=x["dstate"])
    _, bi_gradients = bi_wkv(*arguments[:5], g=x["g"])

    def loss(*arguments):
        y, state = wkv(*arguments)
        return (y * x["g"]).sum() + (state * x["dstate"]).sum()

    def bi_loss(*arguments):
        return (bi_wkv(*arguments) * x["g"]).sum()

    rng = np.random.default_rng(1)
    for function, count, analytic in ((loss, 6, gradients), (bi_loss, 5, bi_gradients)):
        for i in range(count):
            direction = rng.standard_normal(arguments[i].shape)
            ends = []
            for sign in (1, -1):
                moved = list(arguments[:count])
                moved[i] = moved[i] + sign * 1e-6 * direction
                ends.append(function(*moved))
            slope = (ends[0] - ends[1]) / 2e-6
            chex.assert_trees_all_close(slope, (analytic[i] * direction).sum(), rtol=1e-6)
