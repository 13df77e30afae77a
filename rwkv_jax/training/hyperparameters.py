"""What each optimizer may be told, and what it takes where nothing is said.

A rate or decay that suits one optimizer does not suit another, so each has its own defaults.
"""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class AdamW:
    """RWKV-CLIP's own recipe: the paper's settings and the arguments of the authors' script."""

    peak_learning_rate: float = 1e-3
    weight_decay: float = 0.2
    beta1_base: float = 0.95
    beta1_peak: float = 0.85
    beta2: float = 0.98
    epsilon: float = 1e-8


@dataclasses.dataclass(frozen=True)
class Lion:
    """Chen et al., Symbolic Discovery of Optimization Algorithms (arXiv 2302.06675), section 5.

    Its update is a sign, larger than AdamW's: a rate 3 to 10 times lower, and a decay as many times
    higher. Here 10: 1e-3 / 10 and 0.2 * 10.
    """

    peak_learning_rate: float = 1e-4
    weight_decay: float = 2.0
    beta1: float = 0.9
    beta2: float = 0.99


@dataclasses.dataclass(frozen=True)
class Adafactor:
    """Second moments by row and column: half of AdamW's state, the momentum.

    As for large vision models (Zhai et al., arXiv 2106.04560, section 3.4): with momentum, without
    scaling by the parameter's size, so AdamW's rate and decay serve. The second moment's decay is
    1 - t**-decay_exponent (Shazeer and Stern, arXiv 1804.04235, section 7.2).
    """

    peak_learning_rate: float = 1e-3
    weight_decay: float = 0.2
    momentum: float = 0.9
    decay_exponent: float = 0.8


@dataclasses.dataclass(frozen=True)
class Muon:
    """Blocks' matrices by their orthogonalised momentum, all else by AdamW.

    Momentum 0.95: Jordan et al., Muon (kellerjordan.github.io/posts/muon). The update is scaled to
    AdamW's size, so AdamW's rate and decay serve (Liu et al., arXiv 2502.16982, section 2.2).
    AdamW's beta1 is the middle of the recipe's cycle, 0.85 to 0.95.
    """

    peak_learning_rate: float = 1e-3
    weight_decay: float = 0.2
    momentum: float = 0.95
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-8


Hyperparameters = AdamW | Lion | Adafactor | Muon
OptimizerName = Literal["adamw", "lion", "adafactor", "muon"]
OPTIMIZERS: dict[str, type[Hyperparameters]] = {
    "adamw": AdamW,
    "lion": Lion,
    "adafactor": Adafactor,
    "muon": Muon,
}
