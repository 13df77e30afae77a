"""Classifiers for many penalties at once, within a bound of memory."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Float32, Int

from rwkv_jax.evaluation.probe import lbfgs
from rwkv_jax.evaluation.probe.losses import sigmoid_loss, softmax_loss
from rwkv_jax.evaluation.probe.rows import lay_out, second_moments

MOST_STEPS = 1000  # Radford et al. 2021, appendix A.3
TOLERANCE = 1e-6  # of the objective: the next step's promise; float32 sees no less
# To tell strengths apart: objectives are at most 5e-5 above those that scikit-learn's own tolerance
# reaches, and mostly below (docs/probe_bench.md), in half the time of TOLERANCE.
SEARCH_TOLERANCE = 1e-5
MEMORY = 4 * 2**30  # bytes a device may spend on fits beside the rows
TOGETHER = 7  # fits of the search's first round, and of any round of a small problem: one program
SMALL = 2e7  # multiplications a step of `TOGETHER` fits; beyond, finished fits are taken out


@dataclasses.dataclass(frozen=True)
class Classifier:
    """Scores are features @ weights.T + bias; float32.

    Attributes:
      weights: [C, D].
      bias: [C].
      objective: the value that was reached, a mean over rows plus the penalty.
      steps: of L-BFGS.
    """

    weights: Float32[np.ndarray, "C D"]
    bias: Float32[np.ndarray, " C"]
    objective: float
    steps: int

    def scores(self, features: Float[np.ndarray, "n D"]) -> Float32[np.ndarray, "n C"]:
        """Of every class for every row."""
        return features.astype(np.float32) @ self.weights.T + self.bias


def fit_bytes(rows: int, E: int, classes: int) -> int:
    """What one fit takes on a device beside its rows, about.

    Args:
      rows: of that device.
      E: features and one.
      classes: C.
    """
    # scores, those of the move, residuals, and what the loss makes between; steps and changes
    history = (2 * lbfgs.MEMORY + 6) * classes * E
    return 4 * (8 * rows * classes + history + E * E)


class Problem:
    """Rows to fit on, once laid out, for any penalties.

    lambda is what CLIP's appendix calls the strength of the L2 regularisation, 1 / C of
    scikit-learn: beside the sum of the losses stands lambda / 2 |W|^2. (The grid is symmetric, so
    reading it as C gives the same values.) Biases are not penalised.

    Args:
      features: one row a picture, before any projection or normalisation.
      targets: [n] classes below `classes`: multinomial; [n, C] of 1, 0 and NaN: C independent
        sigmoids.
      classes: C.
      mesh: its devices share the rows.
    """

    def __init__(
        self,
        features: Float[np.ndarray, "n D"],
        targets: Int[np.ndarray, " n"] | Float[np.ndarray, "n C"],
        classes: int,
        mesh: Mesh,
    ) -> None:
        self._count, self._width = features.shape
        self._classes = classes
        self._mesh = mesh
        self._rows, self._mean = lay_out(features, targets, mesh)
        self._moments = np.asarray(second_moments(self._rows))
        multinomial = targets.ndim == 1
        self._loss = softmax_loss if multinomial else sigmoid_loss
        self._curvature_classes = classes if multinomial else 2

    def fit(
        self,
        strengths: Sequence[float],
        starts: Sequence[Classifier] | None = None,
        tolerance: float = TOLERANCE,
    ) -> list[Classifier]:
        """A classifier for each lambda of `strengths`, from the starts or from 0.

        As many are solved at once as memory allows.

        Args:
          strengths: lambdas.
          starts: one for each of them.
          tolerance: of the objective, what the next step may promise at the end.
        """
        if starts is None:
            nothing = np.zeros((self._classes, self._width), np.float32)
            starts = [Classifier(nothing, nothing[:, 0], np.nan, 0)] * len(strengths)
        count, size = len(strengths), self._at_once()
        if self._small() and size >= TOGETHER:
            # compiling takes longer than fitting the last one again beside itself
            missing = max(0, TOGETHER - count)
            strengths = [*strengths, *[strengths[-1]] * missing]
            starts = [*starts, *[starts[-1]] * missing]
        fitted = []
        for i in range(0, len(strengths), size):
            some = slice(i, i + size)
            fitted += self._fit_together(strengths[some], starts[some], tolerance)
        return fitted[:count]

    def _small(self) -> bool:
        work = 2 * self._rows.x.size * self._classes * TOGETHER
        return work / self._mesh.size <= SMALL

    def _at_once(self) -> int:
        rows = self._rows.x.shape[1] // self._mesh.size
        return max(1, MEMORY // fit_bytes(rows, self._width + 1, self._classes))

    def _fit_together(
        self, strengths: Sequence[float], starts: Sequence[Classifier], tolerance: float
    ) -> list[Classifier]:
        penalties = np.array(strengths, np.float64) / self._count
        factors = np.stack(
            [
                lbfgs.preconditioner(self._moments, self._curvature_classes, penalty)
                for penalty in penalties
            ]
        )
        weights = np.stack(
            [
                np.concatenate(
                    [each.weights, (each.bias + each.weights @ self._mean)[:, None]], axis=1
                )
                for each in starts
            ]
        )
        arguments = [jnp.asarray(factors), jnp.asarray(penalties, jnp.float32)]
        state = lbfgs.begin(self._rows, *arguments, jnp.asarray(weights), loss=self._loss)

        running = np.arange(len(strengths))  # the fits in `state`
        fitted: dict[int, Classifier] = {}
        while len(running):
            leave = len(running) > 1 and not self._small()
            few = 2 ** int(np.log2(len(running) - 1)) if leave else 0  # 7 fits, then 4, 2, 1
            limits = (np.int32(MOST_STEPS), np.float32(tolerance), np.int32(few))
            state = lbfgs.run(self._rows, *arguments, state, *limits, loss=self._loss)
            over = np.asarray(state.done) | (np.asarray(state.taken) >= MOST_STEPS)
            if not leave:
                over[:] = True
            for place in np.flatnonzero(over):
                fitted[int(running[place])] = self._classifier(state, int(place))
            kept = np.flatnonzero(~over)
            running = running[kept]
            arguments, state = jax.tree.map(lambda a, kept=kept: a[kept], (arguments, state))
        return [fitted[i] for i in range(len(strengths))]

    def _classifier(self, state: lbfgs.State, place: int) -> Classifier:
        weights = np.asarray(state.weights[place])
        return Classifier(
            weights=weights[:, :-1],
            bias=weights[:, -1] - weights[:, :-1] @ self._mean,
            objective=float(state.value[place]),
            steps=int(state.taken[place]),
        )
