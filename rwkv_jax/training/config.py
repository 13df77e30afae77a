"""What a person can set about training, validated where it is set."""

import dataclasses
import math
import re
from typing import Literal

from rwkv_jax.training.hyperparameters import OPTIMIZERS, Hyperparameters, OptimizerName


def require(condition: bool, field: str, value: object, wanted: str) -> None:
    """Raises a ValueError that names the field, its value and what it should be."""
    if not condition:
        raise ValueError(f"{field} = {value!r}: {wanted}")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer by name, under a one-cycle schedule; the defaults are RWKV-CLIP's own recipe.

    Hyperparameters from `peak_learning_rate` to `decay_exponent` are the named optimizer's own
    where they are None (`hyperparameters.py` has the numbers and their sources); one that it does
    not have is refused. `settings` holds what results.

    Parameters are named by path, such as "image/blocks/spatial_mix/key". A pattern is a regular
    expression that is searched for in the path; one that is found in none is refused when the
    optimizer meets the parameters.

    Attributes:
        name: the optimizer.
        warmup_share: share of all steps in which the rate climbs, in (0, 1).
        div_factor: the first rate is peak / div_factor.
        final_div_factor: the last rate is peak / (div_factor * final_div_factor).
        clip_norm: gradients are scaled down to this global norm.
        peak_learning_rate: reached after `warmup_share` of the steps.
        weight_decay: decoupled, times the rate, on every parameter (the recipe excludes none).
        beta1_base: beta1 at the first and the last step.
        beta1_peak: beta1 at the peak rate (momentum is cycled against the rate).
        beta1: decay of the first moment, where it is not cycled.
        beta2: decay of the second moment; Lion's, of its momentum.
        epsilon: Adam's, outside the square root.
        momentum: decay of the averaged update (Adafactor) or gradient (Muon).
        decay_exponent: Adafactor's second moment decays by 1 - t**-decay_exponent.
        frozen: the tower that is locked (LiT, Zhai et al., arXiv 2111.07991): bit-equal to the
            end, without gradients or optimizer state.
        learning_rate_multipliers: (pattern, factor) pairs; the first found in a path sets its
            factor on the rate, decay included. 0 freezes as `frozen` does. Without a pair: 1.
        no_decay: patterns of parameters without weight decay.
        ema_decay: keeps an average of the parameters, in float32; None keeps none.
    """

    name: OptimizerName = "adamw"
    warmup_share: float = 0.1
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    clip_norm: float = 1.0
    peak_learning_rate: float | None = None
    weight_decay: float | None = None
    beta1_base: float | None = None
    beta1_peak: float | None = None
    beta1: float | None = None
    beta2: float | None = None
    epsilon: float | None = None
    momentum: float | None = None
    decay_exponent: float | None = None
    frozen: Literal["image", "text"] | None = None
    learning_rate_multipliers: tuple[tuple[str, float], ...] = ()
    no_decay: tuple[str, ...] = ()
    ema_decay: float | None = None

    def __post_init__(self) -> None:
        require(self.name in OPTIMIZERS, "optimizer.name", self.name, f"know {[*OPTIMIZERS]}")
        own = [field.name for field in dataclasses.fields(OPTIMIZERS[self.name])]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            require(
                field.name in own or field.name not in _HYPERPARAMETERS or value is None,
                f"optimizer.{field.name}",
                value,
                f"{self.name} has no such setting, it has {', '.join(own)}; leave it out",
            )
        values = dataclasses.asdict(self) | dataclasses.asdict(self.settings)
        for name in ("div_factor", "final_div_factor", "clip_norm", *_ABOVE_0):
            value = values[name]
            require(value is None or value > 0, f"optimizer.{name}", value, "must be above 0")
        for name in ("warmup_share", "ema_decay", *_BETWEEN_0_AND_1):
            value = values[name]
            wanted = "must lie strictly between 0 and 1"
            require(value is None or 0 < value < 1, f"optimizer.{name}", value, wanted)
        decay = values["weight_decay"]
        require(decay >= 0, "optimizer.weight_decay", decay, "must be 0 or more")
        self._check_rules(decay)

    def _check_rules(self, weight_decay: float) -> None:
        known = (None, "image", "text")
        require(self.frozen in known, "optimizer.frozen", self.frozen, "know image, text and None")
        for pattern, factor in self.learning_rate_multipliers:
            field = f"optimizer.learning_rate_multipliers: factor of {pattern!r}"
            require(0 <= factor < math.inf, field, factor, "must be 0 or more")
        require(
            weight_decay > 0 or not self.no_decay,
            "optimizer.no_decay",
            self.no_decay,
            "optimizer.weight_decay = 0 decays no parameter as it is; leave one of them out",
        )
        named = [pattern for pattern, _ in self.learning_rate_multipliers]
        for field, patterns in (("learning_rate_multipliers", named), ("no_decay", self.no_decay)):
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise ValueError(
                        f"optimizer.{field}: {pattern!r} is no regular expression ({error})"
                    ) from None

    @property
    def settings(self) -> Hyperparameters:
        """The named optimizer's hyperparameters, its own defaults filled in."""
        kind = OPTIMIZERS[self.name]
        names = [field.name for field in dataclasses.fields(kind)]
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return kind(**given)


_HYPERPARAMETERS = {
    field.name for kind in OPTIMIZERS.values() for field in dataclasses.fields(kind)
}
_ABOVE_0 = ("peak_learning_rate", "epsilon", "decay_exponent")
_BETWEEN_0_AND_1 = ("beta1_base", "beta1_peak", "beta1", "beta2", "momentum")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """How often a run is saved, and how many of its checkpoints stay.

    Attributes:
        every: steps between two checkpoints; the last step is always saved.
        keep: newest checkpoints that stay on disk.
    """

    every: int = 1000
    keep: int = 3

    def __post_init__(self) -> None:
        require(self.every >= 1, "checkpoint.every", self.every, "must be 1 or more steps")
        require(self.keep >= 1, "checkpoint.keep", self.keep, "must be 1 or more")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How devices are laid out; see `rwkv_jax.mesh` for what each axis splits.

    Attributes:
        data: parts of the batch, each with all parameters.
        fsdp: parts of the batch that share one copy of the parameters between them.
        tensor: parts of the heads and hidden channels.
        One of the three may be -1: all devices that the other two leave.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        sizes = {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}
        for name, size in sizes.items():
            require(size >= 1 or size == -1, f"mesh.{name}", size, "must be 1 or more, or -1")
        free = [name for name, size in sizes.items() if size == -1]
        require(
            len(free) <= 1, " and ".join(f"mesh.{name}" for name in free), -1, "only one may be -1"
        )


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Which contrastive loss, and how it is computed; every form of a kind gives the same number.

    Attributes:
        kind: "softmax" (CLIP's) or "sigmoid" (SigLIP's, arXiv 2303.15343; the model needs a
            `logit_bias`).
        form: "full" has all B x B logits of the global batch at once; "ring" passes texts from
            device to device and has [pairs a device, chunk] scores at a time.
        chunk: texts at a time in a ring; divides the pairs a device where they are more.
        authors_devices: divides the gradient of both towers, not that of logit scale and bias; 1
            leaves it as it is. The authors' code, on N GPUs, averages over GPUs the gradients that
            each has of its own features in the global loss, where their sum is the gradient: N
            here reproduces that on any number of devices. It changes what `optimizer.clip_norm`
            and `optimizer.epsilon` do, not the direction of the gradient in a tower.
    """

    kind: Literal["softmax", "sigmoid"] = "softmax"
    form: Literal["full", "ring"] = "full"
    chunk: int = 1024
    authors_devices: int = 1

    def __post_init__(self) -> None:
        for name, known in (("kind", ("softmax", "sigmoid")), ("form", ("full", "ring"))):
            value = getattr(self, name)
            require(value in known, f"loss.{name}", value, f"must be one of {', '.join(known)}")
        require(self.chunk >= 1, "loss.chunk", self.chunk, "must be 1 or more texts")
        require(
            self.authors_devices >= 1,
            "loss.authors_devices",
            self.authors_devices,
            "must be 1 or more",
        )


Positives = Literal["pair", "concept"]
